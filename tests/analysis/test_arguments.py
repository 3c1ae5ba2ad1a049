"""The functions check their arguments, also when no command line has done so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import dino_extract as dx
from dino_extract.errors import ConfigError
from tests.analysis.stores import blobs, keys_of, write_store


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: dx.linear(path, method="Logistic"), "`method` must be `logistic` or `sgd`, got `Logistic`"),
        (lambda path: dx.linear(path, method="sgd", iterations=0), "`iterations` must be a whole number of at least 1"),
        (lambda path: dx.linear(path, test_labels=["a"]), "`test_labels` needs `test`"),
        (lambda path: dx.knn(path, test_labels=["a"]), "`test_labels` needs `test`"),
        (lambda path: dx.knn(path, path), "would be tested on the images it was trained on"),
        (lambda path: dx.linear(path, path), "would be tested on the images it was trained on"),
        (lambda path: dx.linear_dense(path, "masks", task="segment"), "`task` must be `segmentation` or `depth`, got `segment`"),
        (lambda path: dx.linear_dense(path, "masks", test_targets="others"), "`test_targets` needs `test`"),
        (lambda path: dx.search(path, path, index="faiss"), "`index` must be `auto`, `exact`, `hnsw` or `ivfpq`, got `faiss`"),
        (lambda path: dx.curate(path, 2, like=path, by="samples"), "`by` must be `sample` or `cluster`, got `samples`"),
        (lambda path: dx.curate(path, 2, by="cluster"), "`by` needs `like`"),
        (lambda path: dx.report(path, projection="t-sne"), "`projection` must be `auto`, `pca`, `tsne` or `umap`, got `t-sne`"),
        (lambda path: dx.export(path, format="csv", dtype="float64"), "`dtype` must be `float32` or `float16`, got `float64`"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, call: Callable[[str], object], message: str) -> None:
    """A misspelt choice, a number out of range, and an option that would be ignored are errors."""
    vectors, labels = blobs(2, 5, 8)
    path = write_store(tmp_path / "x.h5", keys_of(labels), {"features": vectors})

    with pytest.raises(ConfigError, match=message):
        call(path)
