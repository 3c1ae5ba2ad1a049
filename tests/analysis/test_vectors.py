"""Vectors that are read when they are indexed."""

from __future__ import annotations

import numpy as np
import pytest

from dino_extract.analysis.vectors import Vectors, opened
from dino_extract.errors import ConfigError, StoreError


@pytest.mark.parametrize("index", [slice(1, None), np.array([2, 1])])
def test_bad_row_is_named_by_its_place_in_the_file(index: slice | np.ndarray) -> None:
    """Of rows that are some of a file, the one with NaN goes by the number that it has there."""
    rows = np.zeros((10, 4), np.float32)
    rows[7, 2] = np.nan
    some = Vectors(rows, rows=np.array([1, 5, 7]), name="x.h5")

    with pytest.raises(StoreError, match=r"row 7 of x\.h5 has NaN"):
        some[index]


def test_vectors_in_memory_are_no_file() -> None:
    """An array where a file of embeddings is wanted is one sentence, with the functions that take arrays."""
    with pytest.raises(ConfigError, match="expected a file of embeddings, opened or by its path, got `ndarray`"), opened(np.eye(3)):  # type: ignore[arg-type]
        pass
