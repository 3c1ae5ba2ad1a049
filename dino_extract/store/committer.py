"""The thread that brings batches to the disk, so that the model never waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import StoreError
from dino_extract.store import disk
from dino_extract.store.batch import RowBatch
from dino_extract.store.layout import Extent
from dino_extract.store.rows import Column, RowArea, row_crcs, runs

COMMIT_INTERVAL_S = 0.2
QUEUE_NBYTES = 256 << 20  # put into the queue and not yet written; one batch more is always taken


class Committer:
    """Writes batches in the order they come, and commits them in groups.

    A group is committed in two steps with a disk sync after each: first the rows, then their checksums. A row whose checksum
    matches is therefore complete, whenever the power goes.

    Args:
        fd: the part file.
        doing: for messages, for example "write `out.h5.part`".
        areas: places of the row datasets, in stored order.
        crc_extent: place of `/row_crc`.
        columns_of: turns a batch into a column per area.
    """

    def __init__(
        self, fd: int, doing: str, areas: Sequence[RowArea], crc_extent: Extent, columns_of: Callable[[RowBatch], list[Column]]
    ) -> None:
        self.committed = 0
        self._fd, self._doing, self._areas, self._crc_extent, self._columns_of = fd, doing, areas, crc_extent, columns_of
        self._condition = threading.Condition()
        self._queue: deque[RowBatch] = deque()
        self._queued_nbytes = 0
        self._is_closing = False
        self._is_idle = True  # nothing queued, nothing being written, nothing uncommitted
        self._flush_wanted = False
        self._error: BaseException | None = None
        self._has_ended = False
        self._at_end: Callable[[], None] | None = None
        self._uncommitted: list[tuple[NDArray[np.int64], NDArray[np.uint32]]] = []
        self._checksums = ThreadPoolExecutor(1, thread_name_prefix="store-checksums")
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, batch: RowBatch) -> None:
        """Hand over a batch; waits only while the disk is far behind.

        Raises:
            StoreError: an earlier batch could not be written.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._error is not None or not self._queue or self._queued_nbytes < QUEUE_NBYTES)
            self._raise_error()
            self._queue.append(batch)
            self._queued_nbytes += batch.nbytes
            self._is_idle = False
            self._condition.notify_all()

    def flush(self) -> None:
        """Return when everything in the queue is committed.

        Raises:
            StoreError: something could not be written.
        """
        with self._condition:
            self._flush_wanted = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._error is not None or self._is_idle)
            self._flush_wanted = False
            self._raise_error()

    def close(self) -> None:
        """Commit everything in the queue and end the thread.

        Raises:
            StoreError: something could not be written.
        """
        self.join()
        self._raise_error()

    def join(self) -> None:
        """The same, without a word about what could not be written."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        self._thread.join()

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call `call` now if the thread has ended; if not, because waiting for it was interrupted, the thread calls it as its last act."""
        with self._condition:
            if not self._has_ended:
                self._at_end = call
                return
        call()

    def _raise_error(self) -> None:
        if isinstance(self._error, OSError):
            raise disk.store_error(self._error, self._doing) from self._error
        if self._error is not None:
            raise StoreError(f"cannot {self._doing}: {self._error}", hint="this is a bug, please report it") from self._error

    def _run(self) -> None:
        deadline = 0.0
        try:
            while True:
                batch = self._next(deadline)
                if batch is not None:
                    if not self._uncommitted:
                        deadline = time.monotonic() + COMMIT_INTERVAL_S
                    self._write(batch)
                    if time.monotonic() < deadline:
                        continue
                self._commit()
                with self._condition:
                    self._is_idle = not self._queue
                    self._condition.notify_all()
                    if self._is_closing and not self._queue:
                        return
        except BaseException as error:  # carried to the caller, whose next call raises it
            with self._condition:
                self._error = error
                self._queue.clear()
                self._condition.notify_all()
        finally:
            self._checksums.shutdown()
            with self._condition:
                self._has_ended = True
            if self._at_end is not None:
                self._at_end()

    def _next(self, deadline: float) -> RowBatch | None:
        """The next batch, or None when it is time to commit."""
        with self._condition:
            while not self._queue and not self._is_closing and not (self._flush_wanted and self._uncommitted):
                left_s = deadline - time.monotonic() if self._uncommitted else None
                if left_s is not None and left_s <= 0:
                    break
                self._condition.wait(left_s)
            if not self._queue:
                return None
            batch = self._queue.popleft()
            self._queued_nbytes -= batch.nbytes
            self._condition.notify_all()
            return batch

    def _write(self, batch: RowBatch) -> None:
        columns = self._columns_of(batch)
        crcs = self._checksums.submit(row_crcs, columns)  # meanwhile: both let other threads run
        for first, last in runs(batch.rows):
            row = int(batch.rows[first])
            for area, column in zip(self._areas, columns, strict=True):
                offset, nbytes = area.span(row, row + last - first)
                content = column.rows(first, last)
                assert len(content) == nbytes, "a batch was checked against the layout when it was put into the queue"
                # Texts are rare: where none is and none was, the file keeps its hole.
                if area.name != "error" or disk.read_exactly(self._fd, nbytes, offset) != content:
                    disk.write_all(self._fd, content, offset)
        self._uncommitted.append((batch.rows, crcs.result()))

    def _commit(self) -> None:
        if not self._uncommitted:
            return
        disk.sync_data(self._fd)
        for rows, crcs in self._uncommitted:
            for first, last in runs(rows):
                disk.write_all(self._fd, crcs[first:last].astype("<u4"), self._crc_extent.offset + 4 * int(rows[first]))
        disk.sync_data(self._fd)
        self.committed += sum(len(rows) for rows, _ in self._uncommitted)
        self._uncommitted = []
