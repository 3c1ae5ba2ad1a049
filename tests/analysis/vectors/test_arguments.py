"""Arguments from Python: one item for a list, choices, numbers, and what would be ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import dino_extract as dx
from dino_extract.analysis.vectors.arguments import at_least_one, several
from dino_extract.errors import ConfigError
from tests.analysis.stores import blobs, keys_of, write_store


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("cls", ["cls"]),
        (5, [5]),
        (np.int64(5), [5]),
        ((5, 6), [5, 6]),
        (np.array(["a", "b"]), ["a", "b"]),
        (torch.tensor([1, 2]), [1, 2]),
        ((), []),
    ],
)
def test_one_item_is_a_list_of_one(value: object, items: list[object]) -> None:
    """A text is not taken apart, and a number need not be in brackets."""
    assert several(value) == items


@pytest.mark.parametrize(("value", "message"), [(2.0, "takes a whole number, got `2.0`"), (0, "must be at least 1, got 0")])
def test_numbers_of_things_are_whole_and_positive(value: object, message: str) -> None:
    """Half an image is none."""
    with pytest.raises(ConfigError, match=f"`--top` {message}"):
        at_least_one("top", value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: dx.linear(path, method="Logistic"), "`--method` takes logistic or sgd, got `Logistic`"),
        (lambda path: dx.linear(path, method="sgd", iterations=0), "`--iterations` must be at least 1"),
        (lambda path: dx.linear(path, test_labels=["a"]), "`--test-labels` is about a test file, but none is given"),
        (lambda path: dx.knn(path, test_labels=["a"]), "`--test-labels` is about a test file, but none is given"),
        (lambda path: dx.knn(path, path), "would be tested on the images it was trained on"),
        (lambda path: dx.linear(path, path), "would be tested on the images it was trained on"),
        (lambda path: dx.linear_dense(path, "masks", task="segment"), "`--task` takes segmentation or depth, got `segment`"),
        (lambda path: dx.linear_dense(path, "masks", test_targets="others"), "`--test-targets` is about a test file"),
        (lambda path: dx.search(path, path, index="faiss"), "`--index` takes auto, exact, hnsw or ivfpq, got `faiss`"),
        (lambda path: dx.curate(path, 2, like=path, by="samples"), "`--by` takes sample or cluster, got `samples`"),
        (lambda path: dx.curate(path, 2, by="cluster"), "`--by` says how images like those of `--like` are found"),
        (lambda path: dx.report(path, map_method="t-sne"), "`--map` takes auto, pca, tsne or umap, got `t-sne`"),
        (lambda path: dx.export(path, format="csv", dtype="float64"), "`--dtype` takes float32 or float16, got `float64`"),
    ],
)
def test_what_would_mean_something_else_is_refused(tmp_path: Path, call: Callable[[str], object], message: str) -> None:
    """A choice with a slip in it is not the other choice, and nothing that is given is ignored."""
    vectors, labels = blobs(2, 5, 8)
    path = write_store(tmp_path / "x.h5", keys_of(labels), {"features": vectors})

    with pytest.raises(ConfigError, match=message):
        call(path)
