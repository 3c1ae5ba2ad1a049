"""Rows of one dataset, read from the file when they are indexed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import StoreError
from dino_extract.store.rows import stretches

_BLOCK_NBYTES = 64 << 20  # bytes of one block

Index = int | slice | EllipsisType | Sequence[int] | NDArray[Any]


def _positions(index: Index, num_rows: int) -> NDArray[np.int64]:
    """The row numbers an index stands for.

    Raises:
        IndexError: a number is out of range, or a mask has another length.
    """
    if isinstance(index, slice):
        return np.arange(num_rows)[index]
    wanted = np.asarray(index)
    if wanted.dtype == bool and wanted.ndim:
        if wanted.shape != (num_rows,):
            raise IndexError(f"a mask for {num_rows} rows has shape {wanted.shape}")
        return np.flatnonzero(wanted)
    if wanted.size == 0:
        return np.zeros(0, np.int64)
    if wanted.dtype.kind not in "iu" or wanted.ndim != 1:
        raise IndexError(f"rows are indexed by a number, a slice, a list of numbers or a mask, got {index!r}")
    wanted = wanted.astype(np.int64)  # which has room for the number of rows
    if wanted.min() < -num_rows or wanted.max() >= num_rows:
        raise IndexError(f"row {wanted.min() if wanted.min() < -num_rows else wanted.max()} is outside the {num_rows} rows")
    return np.where(wanted < 0, wanted + num_rows, wanted)


def _position(index: Any, num_rows: int) -> int:
    return int(_positions([operator.index(index)], num_rows)[0])


def _is_number(index: Any) -> bool:
    """Whether it stands for one row: an int of Python, numpy or torch, or an array without dimensions."""
    return hasattr(index, "__index__") and not isinstance(index, bool) and np.ndim(index) == 0


def _require_open(dataset: h5py.Dataset) -> None:
    if not dataset:
        raise StoreError("the file of these rows is closed", hint="read them inside the `with` block: `rows[:]` is an array that stays")


class Rows:
    """The rows of a dataset that belong to embedded images, as a lazy array.

    `rows[3]`, `rows[10:20]`, `rows[[5, 2]]`, `rows[mask]`, `np.asarray(rows)` and `rows.blocks()` read what they name and no more;
    `rows[3, :2]` reads row 3. In another process, such as a worker of torch's DataLoader, they open the file again.

    Args:
        dataset: (N, ...) in the file.
        rows: (n,) int64 ascending row numbers that are shown.
        origin: (store, name), of which `store[name]` gives these rows, in another process too.

    Attributes:
        shape: as an array.
        dtype: element type as stored.
    """

    def __init__(self, dataset: h5py.Dataset, rows: NDArray[np.int64], origin: tuple[Any, str]) -> None:
        self._dataset = dataset
        self._rows = rows
        self._origin = origin
        self.shape: tuple[int, ...] = (len(rows), *dataset.shape[1:])
        self.dtype: np.dtype[Any] = dataset.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, self._origin

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Index | tuple[Any, ...]) -> NDArray[Any]:
        if isinstance(index, tuple) or index is Ellipsis:
            return self._read_within(index if isinstance(index, tuple) else (index,))
        if _is_number(index):
            row: NDArray[Any] = self._read(np.array([_position(index, len(self))]))[0]
            return row
        return self._read(_positions(index, len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows are in a file: they cannot be had as an array without a copy")
        return np.asarray(self[:], self.dtype if dtype is None else dtype)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for _, block in self.blocks():
            yield from block

    def blocks(self, num_rows: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """All rows in pieces of `num_rows` (64 MB if left out), as (number of the first row, array)."""
        step = num_rows or max(1, _BLOCK_NBYTES // max(1, self.nbytes // max(1, len(self))))
        for first in range(0, len(self), step):
            yield first, self[first : first + step]

    def __repr__(self) -> str:
        return f"<Rows {self._origin[1]}: shape {self.shape}, {self.dtype}>"

    def _read_within(self, index: tuple[Any, ...]) -> NDArray[Any]:
        """What numpy gives for an index with a part for each axis; the rows that the first part names are read whole."""
        if not index or index[0] is Ellipsis:
            index = (*(slice(None),) * (self.ndim - len(index[1:])), *index[1:])
        first, *within = index
        is_number = _is_number(first)
        positions = np.array([_position(first, len(self))]) if is_number else _positions(first, len(self))
        place: Any = 0 if is_number else slice(None) if isinstance(first, slice) else np.arange(len(positions))
        inner = (place, *within)
        found: NDArray[Any] = self._read(positions)[inner]
        return found

    def _read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        _require_open(self._dataset)
        rows = self._rows[positions]
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        row_nbytes = max(1, found.nbytes // max(1, len(rows)))
        for first, last in stretches(ascending, row_nbytes, _BLOCK_NBYTES):
            start, end = int(ascending[first]), int(ascending[last - 1]) + 1
            found[order[first:last]] = self._dataset[start:end][ascending[first:last] - start]
        return found


class RaggedRows:
    """Patch tokens of images with patch grids of different sizes, one array per image.

    Args:
        dataset: (T, D) flat patches in the file.
        rows: (n,) int64 ascending row numbers that are shown.
        offsets: (N + 1,) int64 first patch of each row.
        grid_size: (N, 2) int32 patch grid (h, w) of each row.
        origin: as of `Rows`.

    Attributes:
        dtype: element type as stored.
    """

    def __init__(
        self,
        dataset: h5py.Dataset,
        rows: NDArray[np.int64],
        offsets: NDArray[np.int64],
        grid_size: NDArray[np.int32],
        origin: tuple[Any, str],
    ) -> None:
        self._dataset, self._rows, self._offsets, self._grid_size, self._origin = dataset, rows, offsets, grid_size, origin
        self.dtype: np.dtype[Any] = dataset.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, self._origin

    @property
    def grid_size(self) -> NDArray[np.int32]:
        """(n, 2) int32 patch grid (h, w) of each image."""
        return self._grid_size[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> NDArray[Any]:
        """(h, w, D) patch tokens of one image."""
        if not _is_number(index):
            raise IndexError(f"images of different shapes are read one by one, `rows[3]` or `for row in rows`, got {index!r}")
        _require_open(self._dataset)
        row = self._rows[_position(index, len(self))]
        flat = self._dataset[int(self._offsets[row]) : int(self._offsets[row + 1])]
        grid: NDArray[Any] = np.asarray(flat).reshape(*self._grid_size[row], *self._dataset.shape[1:])
        return grid

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[position] for position in range(len(self)))

    def blocks(self, num_rows: int = 64) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """All rows in pieces of `num_rows` images, as (number of the first row, arrays)."""
        for first in range(0, len(self), num_rows):
            yield first, [self[position] for position in range(first, min(first + num_rows, len(self)))]

    def __repr__(self) -> str:
        return f"<RaggedRows {self._origin[1]}: {len(self):,} images, {self.dtype}>"
