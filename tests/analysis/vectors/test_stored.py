"""Vectors that are read when they are indexed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from dino_extract.analysis.vectors.stored import Vectors, as_vectors, opened
from dino_extract.errors import ConfigError, StoreError


@pytest.mark.parametrize("index", [slice(1, None), np.array([2, 1])])
def test_bad_row_is_named_by_its_place_in_the_file(index: slice | np.ndarray) -> None:
    """Of rows that are some of a file, the one with NaN goes by the number that it has there."""
    rows = np.zeros((10, 4), np.float32)
    rows[7, 2] = np.nan
    some = Vectors(rows, rows=np.array([1, 5, 7]), name="x.h5")

    with pytest.raises(StoreError, match=r"row 7 of x\.h5 has NaN"):
        some[index]


def test_a_length_that_float32_cannot_square_is_named() -> None:
    """Finite numbers whose squares are not would have a cosine of 0 with everything, themselves too."""
    rows = np.ones((3, 4), np.float32)
    rows[1] = 1e20

    with pytest.raises(StoreError, match=r"row 1 of x\.h5 has NaN, infinite or enormous values"):
        Vectors(rows, name="x.h5")[:]


@pytest.mark.parametrize(
    "vectors",
    [[[1, 2], [3, 4]], pandas.DataFrame([[1.0, 2.0], [3.0, 4.0]], index=[7, 5]), torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16)],
)
def test_vectors_in_memory_may_be_of_any_kind(vectors: Any) -> None:
    """Lists, tables and tensors are read by the position of a row, as arrays are."""
    found = as_vectors(vectors)

    assert found.dim == 2
    assert found.take(np.array([1, 0]))[:].tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize("names", [["a.jpg"], np.array(["a.jpg"]), [Path("a.jpg")]])
def test_names_of_images_are_no_vectors(names: Any) -> None:
    """Who gives images where vectors are wanted is told what makes vectors of them."""
    with pytest.raises(ConfigError, match=r"the queries must be vectors, or a file of embeddings, got `a\.jpg`") as caught:
        as_vectors(names, "the queries")
    assert "dx.embed_like" in str(caught.value.hint)


def test_vectors_in_memory_are_no_file() -> None:
    """An array where a file of embeddings is wanted is one sentence, with the functions that take arrays."""
    with pytest.raises(ConfigError, match="expected a file of embeddings, opened or by its path, got `ndarray`"), opened(np.eye(3)):  # type: ignore[arg-type]
        pass
