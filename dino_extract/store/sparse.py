"""A file in memory that costs only what was written to it, however large it says it is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

_PAGE = 65_536


class SparseBytes(io.RawIOBase):
    """A file object for h5py that keeps only pages that were written; the rest reads as zero.

    HDF5 lays out terabytes by seeking past them, so the metadata of any store fits in a few pages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self._position = 0
        self._pages: dict[int, bytearray] = {}

    def put(self, offset: int, content: bytes | memoryview) -> None:
        """Write at `offset`."""
        view = memoryview(content).cast("B")
        self.size = max(self.size, offset + len(view))
        while view:
            number, start = divmod(offset, _PAGE)
            part = view[: _PAGE - start]
            page = self._pages.setdefault(number, bytearray(_PAGE))
            page[start : start + len(part)] = part
            view, offset = view[len(part) :], offset + len(part)

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from `start` to `end`, a page or less at a time."""
        empty = bytes(_PAGE)
        while start < end:
            number, first = divmod(start, _PAGE)
            last = min(_PAGE, first + end - start)
            yield memoryview(self._pages.get(number, empty))[first:last]
            start += last - first

    def written(self) -> Iterator[tuple[int, memoryview]]:
        """The pages that were written, as (offset, bytes), ascending."""
        for number in sorted(self._pages):
            offset = number * _PAGE
            yield offset, memoryview(self._pages[number])[: self.size - offset]

    # What h5py's file object driver calls

    def write(self, content: Any) -> int:
        """Write at the position."""
        view = memoryview(content).cast("B")
        self.put(self._position, view)
        self._position += len(view)
        return len(view)

    def readinto(self, target: Any) -> int:
        """Read from the position."""
        view = memoryview(target).cast("B")
        count = 0
        for piece in self.pieces(self._position, self._position + len(view)):
            view[count : count + len(piece)] = piece
            count += len(piece)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size; nothing is ever cut off, because HDF5 only grows the file."""
        self.size = self._position if size is None else size
        return self.size

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True
