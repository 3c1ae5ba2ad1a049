"""Rows as bytes: where they lie in the file, and the checksum that commits each of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dino_extract.store import disk
from dino_extract.store.layout import Extent, RowDataset

_SMALL_ROW = 1024  # bytes; below, gluing the columns of a row together is cheaper than one more checksum call
_GAP_NBYTES = 64 << 10  # reading this much too much costs no more than one more call
_READ_NBYTES = 4 << 20  # bytes read at a time: small enough to stay in the cache until they are summed


@dataclass(frozen=True, eq=False)
class Column:
    """Some rows of one dataset, end to end.

    Args:
        content: the bytes.
        bounds: (B + 1,) int64, row i is `content[bounds[i]:bounds[i + 1]]`.
        item_nbytes: bytes of every row, or None where rows differ.
    """

    content: memoryview
    bounds: NDArray[np.int64]
    item_nbytes: int | None

    def rows(self, first: int, last: int) -> memoryview:
        """The bytes of rows first..last-1."""
        return self.content[self.bounds[first] : self.bounds[last]]


@dataclass(frozen=True, eq=False)
class RowArea:
    """Where the rows of one dataset lie in the file.

    Args:
        name: the dataset.
        offset: file position of row 0.
        item_nbytes: bytes of one row, or of one patch where ragged.
        starts: (N + 1,) int64 first patch of each row, or None where every row is one item.
    """

    name: str
    offset: int
    item_nbytes: int
    starts: NDArray[np.int64] | None

    def span(self, first: int, last: int) -> tuple[int, int]:
        """File position and number of bytes of rows first..last-1."""
        if self.starts is not None:
            first, last = int(self.starts[first]), int(self.starts[last])
        return self.offset + first * self.item_nbytes, (last - first) * self.item_nbytes

    def read(self, fd: int, first: int, last: int) -> Column:
        """Rows first..last-1."""
        offset, nbytes = self.span(first, last)
        items = np.arange(last - first + 1) if self.starts is None else self.starts[first : last + 1] - self.starts[first]
        content = memoryview(disk.read_exactly(fd, nbytes, offset))
        return Column(content, items * self.item_nbytes, self.item_nbytes if self.starts is None else None)


def row_areas(datasets: Sequence[RowDataset], extents: dict[str, Extent], starts: NDArray[np.int64] | None) -> list[RowArea]:
    """The places of the row datasets, in stored order."""
    return [RowArea(each.name, extents[each.name].offset, each.item_nbytes, starts if each.is_ragged else None) for each in datasets]


def row_crcs(columns: Sequence[Column]) -> NDArray[np.uint32]:
    """(B,) the checksum of each row over its bytes in all columns; never 0, which stands for "not committed"."""
    columns = _glued(columns)
    crcs = [0] * (len(columns[0].bounds) - 1)
    for column in columns:
        bounds, content = column.bounds.tolist(), column.content
        for row, crc in enumerate(crcs):
            crcs[row] = zlib.crc32(content[bounds[row] : bounds[row + 1]], crc)
    return np.array([crc or 1 for crc in crcs], dtype=np.uint32)


def _glued(columns: Sequence[Column]) -> list[Column]:
    """The columns, neighbouring small ones joined row by row: the same bytes per row in fewer pieces."""
    glued: list[Column] = []
    for column in columns:
        last = glued[-1] if glued else None
        if last and last.item_nbytes is not None and column.item_nbytes is not None and last.item_nbytes + column.item_nbytes <= _SMALL_ROW:
            num_rows, width = len(column.bounds) - 1, last.item_nbytes + column.item_nbytes
            pair = [np.frombuffer(part.content, np.uint8).reshape(num_rows, -1) for part in (last, column)]
            content = np.concatenate(pair, axis=1).data.cast("B") if num_rows else memoryview(b"")
            glued[-1] = Column(content, np.arange(num_rows + 1) * width, width)
        else:
            glued.append(column)
    return glued


def row_blocks(areas: Sequence[RowArea], num_rows: int, *, start: int = 0, nbytes: int = _READ_NBYTES) -> Iterator[tuple[int, int]]:
    """Cut `num_rows` rows from row `start` on into blocks (first, last) of about `nbytes` bytes, a larger row being its own block."""
    ends = np.zeros(num_rows + 1, np.int64)
    for area in areas:
        items = np.arange(num_rows + 1) if area.starts is None else area.starts[start : start + num_rows + 1]
        ends += items * area.item_nbytes
    first = 0
    while first < num_rows:
        last = int(np.searchsorted(ends, ends[first] + nbytes, side="right")) - 1
        last = min(max(last, first + 1), num_rows)
        yield start + first, start + last
        first = last


def intact_rows(fd: int, areas: Sequence[RowArea], crcs: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """(N,) which rows are committed and read back exactly as they were written; reads everything, in bounded memory."""
    intact = np.zeros(len(crcs), bool)
    for first, last in row_blocks(areas, len(crcs)):
        if crcs[first:last].any():
            actual = row_crcs([area.read(fd, first, last) for area in areas])
            intact[first:last] = (crcs[first:last] != 0) & (actual == crcs[first:last])
    return intact


def runs(rows: NDArray[np.int64], *others: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut positions 0..len(rows)-1 into the longest stretches (first, last) along which every array counts up by one."""
    if len(rows) == 0:
        return
    breaks = np.zeros(len(rows) - 1, bool)
    for each in (rows, *others):
        breaks |= np.diff(each) != 1
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
    yield from pairwise(edges)


def stretches(ascending: NDArray[np.int64], row_nbytes: int, max_nbytes: int) -> Iterator[tuple[int, int]]:
    """Cut ascending row numbers into (first, last) positions, each worth reading in one go of at most `max_nbytes` or one row."""
    max_gap, max_rows = 1 + _GAP_NBYTES // row_nbytes, max(1, max_nbytes // row_nbytes)
    edges = [0, *(np.flatnonzero(np.diff(ascending) > max_gap) + 1).tolist(), len(ascending)]
    for begin, end in pairwise(edges):
        while begin < end:
            last = int(np.searchsorted(ascending[begin:end], ascending[begin] + max_rows)) + begin
            yield begin, last
            begin = last
