"""How an analysis opens its files, and vectors as every analysis reads them: float32, checked, and a block at a time.

An analysis begins with `open_vectors`. The other functions are its parts, for analyses that need something else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.vectors.compatible import require_compatible
from dino_extract.errors import ConfigError, StoreError
from dino_extract.names import quoted
from dino_extract.store import RaggedRows, Rows, Store, open_store

BLOCK_ROWS = 8192  # 12 MB of ViT-S vectors in float32. Larger blocks are not faster
_COSINE_ROUNDING = 1e-6  # equal vectors differ by up to 6e-7, measured at widths of 8 to 6,144

VectorSource = Union["Vectors", Rows, NDArray[Any], Tensor, Sequence[Any]]
StoreSource = Union[Store, str, "os.PathLike[str]"]


class Vectors:
    """(n, D) vectors of one dataset, or of several side by side, which are read when they are indexed.

    Args:
        parts: (N, D_i) each, joined along D.
        rows: (n,) int64 rows that are visible. By default all.
        name: how error messages call them, usually the path of the file.
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
                hint="leave such rows of an array out, or check a file with `dino-extract verify FILE`",
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
        """(n, D) float32 of length 1, all in memory: for samples."""
        found = torch.empty(len(self), self.dim)
        for first, block in self.unit_blocks():
            found[first : first + len(block)] = block
        return found


def unit(block: NDArray[np.float32]) -> Tensor:
    """(b, D) float32 vectors of length 1. A vector of zeros stays zero, so its cosine to every other is 0."""
    return torch.nn.functional.normalize(torch.from_numpy(block), dim=1)


def least_cosine(threshold: float) -> float:
    """The smallest float32 cosine that counts as reaching a threshold: two equal vectors often give 0.9999999 instead of 1."""
    return threshold - _COSINE_ROUNDING


def as_cosine(product: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products of vectors of length 1, clipped to -1..1: rounding may give 1.0000001, whose arccos is NaN."""
    return product.clip(-1, 1)


def as_vectors(source: VectorSource, name: str = "the vectors") -> Vectors:
    """Rows of a store, an array, a tensor, a list of lists or a table of pandas as `Vectors`.

    Raises:
        ConfigError: the rows are not vectors of numbers.
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
    """Numbers as an array; a tensor becomes float32."""
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
    """Check that a store has images to analyse.

    Raises:
        StoreError: the store is unfinished, or has no embedded image.
    """
    store.require_complete()
    if len(store) == 0:
        raise StoreError(f"`{store.path}` holds no embedded image", hint=f"`dino-extract info --failures {quoted(store.path)}` says why")


@contextlib.contextmanager
def opened(source: StoreSource) -> Iterator[Store]:
    """A store that is given open, or as a path; a store that is opened here is closed at the end.

    Raises:
        StoreError: no such file, not a store, or damaged.
        ConfigError: neither a store nor a path.
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


class OpenVectors(NamedTuple):
    """An open store and the vectors that are analysed."""

    store: Store
    vectors: Vectors


@contextlib.contextmanager
def open_vectors(source: StoreSource, *datasets: str, like: OpenVectors | None = None) -> Iterator[OpenVectors]:
    """A finished store and its vectors; a store that was given by its path is closed at the end.

    Args:
        source: store, or path of one.
        datasets: the vectors to read, several side by side. By default `features`.
        like: an open file that this one must be compatible with.

    Raises:
        StoreError: the store is missing, damaged, unfinished or empty, has no such dataset, or is not compatible.
        ConfigError: the dataset does not hold one vector per image.
    """
    with opened(source) as store:
        if like is not None:
            require_compatible(like.store, store)
        vectors = stored_vectors(store, *datasets)
        if like is not None:
            require_same_dim(vectors, like.vectors)
        yield OpenVectors(store, vectors)


def require_same_dim(one: Vectors, other: Vectors) -> None:
    """Check that two sets of vectors have the same width.

    Raises:
        ConfigError: the widths differ.
    """
    if one.dim != other.dim:
        raise ConfigError(f"vectors of {one.name} have width {one.dim}, those of {other.name} {other.dim}")


def rows_where(keep: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) int64 positions that are true."""
    return np.flatnonzero(np.asarray(keep, dtype=bool)).astype(np.int64)
