"""Fills a store row by row, so that nothing committed is ever lost, and publishes it when it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import StoreError
from dino_extract.files import FileLock
from dino_extract.status import Status
from dino_extract.store import disk
from dino_extract.store.batch import BatchArray, RowBatch, check_batch, columns_of
from dino_extract.store.committer import Committer
from dino_extract.store.layout import Extent, Layout, RowTable, part_path_of
from dino_extract.store.rows import RowArea, intact_rows


class Writer:
    """The run in progress on one HDF5 file; made by `open_writer`, and used in a `with` block.

    Leaving the block without `finish`, by an exception or Ctrl-C too, commits what was written and keeps the `.part` file,
    with which the next `open_writer` goes on.

    Attributes:
        path: the target.
        part_path: the file in progress, at every instant a valid HDF5 file.
        keys: (N,) keys of all rows, sorted; those asked for and those kept from earlier work.
        pending: (n,) int64 row numbers to compute, ascending.
        up_to_date: the finished file already has every row; it will not be touched.
        dropped: rows of earlier work that are left out because their images were deleted.
        failed: rows without an embedding, kept ones and written ones.
    """

    def __init__(
        self, path: str, table: RowTable, layout: Layout, pending: NDArray[np.int64], lock: FileLock, part: OpenPart | None
    ) -> None:
        self.path = path
        self.part_path = part_path_of(path)
        self.keys = table.keys
        self.pending = pending
        self.up_to_date = part is None
        self.dropped = 0
        self.failed = 0
        self._layout = layout
        self._offsets = table.patch_offsets()
        self._lock = lock
        self._part = part
        self._is_open = np.zeros(len(table), bool)  # rows that may be written
        self._is_open[pending] = True
        self._has_raised = False
        self._committer = None if part is None else self._start(part)

    def _start(self, part: OpenPart) -> Committer:
        layout = self._layout
        return Committer(part.fd, f"write `{self.part_path}`", part.areas, part.crc_extent, lambda batch: columns_of(batch, layout))

    @property
    def total(self) -> int:
        """Number of rows of the file."""
        return len(self.keys)

    @property
    def reused(self) -> int:
        """Number of rows that earlier runs have computed."""
        return self.total - len(self.pending)

    @property
    def committed(self) -> int:
        """Number of rows that would survive a power cut now: the reused ones, and those written, in the order of the calls."""
        return self.reused + (self._committer.committed if self._committer else 0)

    def write(
        self,
        rows: NDArray[np.int64] | Sequence[int],
        arrays: Mapping[str, BatchArray],
        *,
        image_size: NDArray[np.int32],
        status: NDArray[np.uint8] | Sequence[int] | None = None,
        errors: Sequence[str] | None = None,
    ) -> None:
        """Write the results of some pending rows; returns at once unless the disk is far behind.

        Args:
            rows: (B,) row numbers.
            arrays: dataset name -> (B, ...) array, or where ragged a list of (patches, ...) arrays. They belong to the writer now: the
                caller must not change them, and the writer may.
            image_size: (B, 2) int32, height and width in pixels after orientation; zero where unknown.
            status: (B,) a `Status` per row; all OK if left out. Rows that are not OK get NaN, whatever the arrays hold.
            errors: (B,) "stage: message", cut to 96 bytes; empty if left out.

        Raises:
            StoreError: this or an earlier batch could not be written.
            ValueError: the batch does not fit the layout, or a row is not pending or was written before.
        """
        numbers = np.asarray(rows, np.int64)
        if len(numbers) == 0:
            return
        given = np.full(len(numbers), Status.OK, np.uint8) if status is None else np.asarray(status, np.uint8)
        batch = RowBatch(numbers, arrays, given, [""] * len(numbers) if errors is None else errors, np.asarray(image_size, np.int32))
        check_batch(batch, self._layout, None if self._offsets is None else np.diff(self._offsets))
        if len(np.unique(numbers)) != len(numbers) or not self._is_open[numbers].all():
            raise ValueError(f"rows {numbers.tolist()} are not all pending, or were written before")
        if (given == Status.PENDING).any():
            raise ValueError("`Status.PENDING` cannot be written: a written row must be OK or failed")
        assert self._committer is not None and self._part is not None, "the writer is still open"
        self._is_open[numbers] = False
        self.failed += int(np.count_nonzero(given != Status.OK))
        self._raising(self._committer.put, batch)

    def flush(self) -> None:
        """Return when everything written is committed.

        Raises:
            StoreError: something could not be written.
        """
        if self._committer and self._part:
            self._raising(self._committer.flush)

    def finish(self) -> None:
        """Check every row by reading it back, and give the file its final name.

        Raises:
            StoreError: the disk is at fault, or another program has put a file in the way.
            ValueError: rows are still pending.
        """
        if self._part is None or self._committer is None:
            return
        if self._is_open.any():
            raise ValueError(f"{int(self._is_open.sum())} rows are still pending")
        self._raising(self._committer.close)
        with disk.explained(f"finish `{self.part_path}`"):
            self._check_read_back(self._part)
            disk.sync_file(self._part.fd)
            if identity_of(self.path) != self._part.replaces:
                message = f"another program has put a file at `{self.path}` during the run; the complete new file is `{self.part_path}`"
                raise StoreError(message, hint="move one of the two away, then run the same command again")
            disk.rename(self.part_path, self.path)
        self.close()

    def _check_read_back(self, part: OpenPart) -> None:
        crcs = np.frombuffer(disk.read_exactly(part.fd, part.crc_extent.nbytes, part.crc_extent.offset), "<u4").astype(np.uint32)
        damaged = np.flatnonzero(~intact_rows(part.fd, part.areas, crcs))
        if len(damaged):
            first = os.fsdecode(self.keys[int(damaged[0])])
            message = f"{len(damaged):,} rows of `{self.part_path}` do not read back as they were written, the first is `{first}`"
            raise StoreError(message, hint="the disk or the memory is failing; the same command computes these rows again")

    def close(self) -> None:
        """Commit what was written and release the file; called by the end of the `with` block.

        Raises:
            StoreError: something could not be written and no call has said so yet.
        """
        try:
            if self._committer and self._part:
                if self._has_raised:
                    self._committer.join()
                else:
                    self._raising(self._committer.close)
        finally:
            if self._committer is None:
                self._release()
            else:  # after a second Ctrl-C its thread still writes: the descriptor must not go to another file
                self._committer.when_ended(self._release)

    def _release(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            os.close(part.fd)
        self._lock.release()

    def _raising(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except StoreError:
            self._has_raised = True
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class OpenPart:
    """A part file open for writing.

    Args:
        fd: its descriptor.
        areas: places of the row datasets, in stored order.
        crc_extent: place of `/row_crc`.
        replaces: identity of the finished file it will replace, or None.
    """

    def __init__(self, fd: int, areas: Sequence[RowArea], crc_extent: Extent, replaces: tuple[int, int] | None) -> None:
        self.fd, self.areas, self.crc_extent, self.replaces = fd, areas, crc_extent, replaces


def identity_of(path: str) -> tuple[int, int] | None:
    """Device and inode of a file, None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
