"""Stored vectors as the analyses take them: float32, checked, a block at a time, never all of a large file at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.errors import ConfigError, StoreError
from dino_extract.names import quoted
from dino_extract.store import RaggedRows, Rows, Store, open_store

BLOCK_ROWS = 8192  # 12 MB of ViT-S vectors in float32; larger blocks are not faster
_COSINE_ROUNDING = 1e-6  # of equal vectors up to 6e-7, seen at widths of 8 to 6,144

VectorSource = Union["Vectors", Rows, NDArray[Any], Tensor, Sequence[Any]]
StoreSource = Union[Store, str, "os.PathLike[str]"]


class Vectors:
    """(n, D) vectors from one dataset, or from several side by side, that are read when they are indexed.

    Args:
        parts: (N, D_i) each, joined along D.
        rows: (n,) int64 rows that are shown; all of them if left out.
        name: what error messages call them, usually the path of the file.
    """

    def __init__(self, *parts: Rows | NDArray[Any], rows: NDArray[np.int64] | None = None, name: str = "the vectors") -> None:
        assert parts and all(part.ndim == 2 and len(part) == len(parts[0]) for part in parts), "parts are (N, D) with one N"
        self._parts = parts
        self._rows = rows
        self.name = name

    def __len__(self) -> int:
        return len(self._parts[0]) if self._rows is None else len(self._rows)

    @property
    def dim(self) -> int:
        """Width D of one vector."""
        return sum(int(part.shape[1]) for part in self._parts)

    def take(self, rows: NDArray[np.int64]) -> Vectors:
        """Some of the vectors, still unread."""
        return Vectors(*self._parts, rows=rows if self._rows is None else self._rows[rows], name=self.name)

    def __getitem__(self, index: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """(b, D) float32.

        Raises:
            StoreError: a value is NaN or infinite, or a vector so long that float32 cannot hold the square of its length.
        """
        wanted = index if self._rows is None else self._rows[index]
        block = np.concatenate([np.asarray(part[wanted], np.float32) for part in self._parts], axis=1)
        is_bad = ~np.isfinite(np.einsum("bd,bd->b", block, block))  # of such a length, every cosine would be 0
        if is_bad.any():
            rows = np.arange(len(self._parts[0])) if self._rows is None else self._rows
            row = int(rows[index][is_bad.argmax()])
            raise StoreError(
                f"row {row} of {self.name} has NaN, infinite or enormous values",
                hint="leave such rows of an array out; of a file, `dino-extract verify FILE` says whether it was damaged",
            )
        return block

    def blocks(self, num_rows: int = BLOCK_ROWS) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """All vectors in pieces, as (number of the first row, (b, D) float32)."""
        for first in range(0, len(self), num_rows):
            yield first, self[first : first + num_rows]

    def unit_blocks(self, num_rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Tensor]]:
        """All vectors in pieces, of length 1, as (number of the first row, (b, D) float32)."""
        for first, block in self.blocks(num_rows):
            yield first, unit(block)

    def all_unit(self) -> Tensor:
        """(n, D) float32, all of them in memory once, of length 1: for samples."""
        found = torch.empty(len(self), self.dim)
        for first, block in self.unit_blocks():
            found[first : first + len(block)] = block
        return found


def unit(block: NDArray[np.float32]) -> Tensor:
    """(b, D) float32 vectors of length 1; a vector of zeros stays zero, and so is like no other."""
    return torch.nn.functional.normalize(torch.from_numpy(block), dim=1)


def least_cosine(threshold: float) -> float:
    """The cosine of float32 vectors of length 1 that reaches a threshold: two equal ones often give 0.9999999, and not 1."""
    return threshold - _COSINE_ROUNDING


def as_cosine(product: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products of vectors of length 1 within -1..1, which rounding leaves by its last digit: an arccos of 1.0000001 is NaN."""
    return product.clip(-1, 1)


def as_vectors(source: VectorSource, name: str = "the vectors") -> Vectors:
    """Rows of a store, an array, a tensor, a list of lists or a table of pandas as `Vectors`.

    Raises:
        ConfigError: not one vector per row, or no numbers.
    """
    if isinstance(source, Vectors):
        return source
    rows = source if isinstance(source, Rows) else as_array(source)
    if rows.dtype.kind not in "fiub":
        raise ConfigError(
            f"{name} must be vectors, or a file of embeddings, got `{np.asarray(rows).flat[0]}`",
            hint="embed images first: `names, vectors = dx.embed_like(store, images)`",
        )
    if rows.ndim != 2:
        raise ConfigError(f"{name} must have shape (n, D), got {tuple(rows.shape)}")
    return Vectors(rows, name=name)


def as_array(values: Any) -> NDArray[Any]:
    """Numbers as an array, wherever they are: of a tensor float32."""
    return values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)


def stored_vectors(store: Store, *datasets: str) -> Vectors:
    """The vectors of one dataset of a finished store, or of several side by side.

    Raises:
        StoreError: the store is unfinished or empty, or has no such dataset.
        ConfigError: the dataset does not hold one vector per image.
    """
    require_images(store)
    parts = []
    for dataset in datasets or ("features",):
        part = store[dataset]
        if isinstance(part, RaggedRows) or part.ndim != 2:
            raise ConfigError(f"`{dataset}` of `{store.path}` has many vectors per image, expected one", hint="use `features`")
        parts.append(part)
    return Vectors(*parts, name=f"`{store.path}`")


def require_images(store: Store) -> None:
    """Check that there is something to analyse.

    Raises:
        StoreError: the store is unfinished, or holds no embedded image.
    """
    store.require_complete()
    if len(store) == 0:
        raise StoreError(f"`{store.path}` holds no embedded image", hint=f"`dino-extract info --failures {quoted(store.path)}` says why")


@contextlib.contextmanager
def opened(source: StoreSource) -> Iterator[Store]:
    """A store given as itself or as a path; one that was opened here is closed again.

    Raises:
        StoreError: no such file, not a store, or damaged.
        ConfigError: something else than a store or a path.
    """
    if isinstance(source, Store):
        yield source
    elif not isinstance(source, (str, os.PathLike)):
        raise ConfigError(
            f"expected a file of embeddings, opened or by its path, got `{type(source).__name__}`",
            hint="for vectors in memory use `classify` of `analysis.probes.knn`, or `group_rows` of `analysis.dedup`",
        )
    else:
        with open_store(source) as store:
            yield store


def require_same_dim(one: Vectors, other: Vectors) -> None:
    """Check that vectors have one width.

    Raises:
        ConfigError: they do not.
    """
    if one.dim != other.dim:
        raise ConfigError(f"vectors of {one.name} have width {one.dim}, those of {other.name} {other.dim}")


def rows_where(keep: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) int64 positions that are true."""
    return np.flatnonzero(np.asarray(keep, dtype=bool)).astype(np.int64)
