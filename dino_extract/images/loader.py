"""Images in fixed-size batches of pixels, in row order, decoded ahead of the model by isolated processes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dino_extract.images.containers import ImageRef
from dino_extract.images.decoder.parent import MEMORY_BYTES, TIMEOUT_S, DecoderDiedError, DecoderProcess, Reply
from dino_extract.images.manifest import Manifest
from dino_extract.images.pixels import Allocate, allocate_pixels
from dino_extract.images.preprocess import DeviceImage, Jpeg, Preprocess
from dino_extract.status import Status

MAX_WORKERS = 32  # these decode and resize small photographs about as fast as one parent can pass them on
OPEN_REQUESTS = 2  # per child: the next image waits in its pipe while the reply to this one is being read


class ImageSource(Protocol):
    """Knows where image `row` is, as a `Manifest` does."""

    def __getitem__(self, row: int, /) -> ImageRef: ...


@dataclass
class DecodedBatch:
    """B images in row order. Those that failed have zero pixels and an error."""

    rows: NDArray[np.int64]  # (B,)
    # (B, h, w, 3) RGB. For `native`, and if the decoders do not resize, a list of (h, w, 3) or JPEGs; (0, 0, 3) for a failed image
    pixels: NDArray[np.uint8] | list[DeviceImage]
    is_resized: NDArray[np.bool_]  # (B,) whether they are what the model sees, or as decoded
    status: NDArray[np.uint8]  # (B,) Status
    errors: list[str]  # empty if OK
    image_size: NDArray[np.int32]  # (B, 2) upright (height, width) of the originals in pixels, 0 if not known

    def settle(self) -> None:
        """Copy the errors of JPEGs that failed to decode on the device into `status` and `errors`."""
        for place, image in enumerate(self.pixels):
            if isinstance(image, Jpeg) and image.error:
                self.status[place], self.errors[place] = Status.UNREADABLE, image.error


@dataclass
class LoaderStats:
    """Counts and times in seconds. Times of reading and decoding are sums over all decoder processes."""

    workers: int
    num_images: int = 0
    num_failed: int = 0
    wait_s: float = 0.0  # the consumer waited for the next batch
    read_s: float = 0.0
    decode_s: float = 0.0


@dataclass
class _Slot:
    """A batch that is being filled."""

    batch: DecodedBatch
    num_missing: int


@dataclass
class _Task:
    index: int  # position in `rows`
    num_deaths: int = 0  # of decoders that were working on it


@dataclass
class _Worker:
    """One thread with its decoder process."""

    tasks: deque[_Task] = field(default_factory=deque)  # open ones, the oldest first
    decoder: DecoderProcess | None = None


def default_workers(num_processes: int = 1) -> int:
    """The number of processors that this process may use, between 1 and 32.

    Args:
        num_processes: processes that share the machine and load images; each gets its part.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(available // num_processes, 1), MAX_WORKERS)


class Loader:
    """Iterates over batches of decoded images. It is a context manager, because child processes work ahead for it.

    An image whose decoder dies is tried once more in a fresh one, so that a decoder killed from outside costs nothing. The second
    death, or one timeout, makes it `CRASHED`. The same rows give the same pixels whatever the number of workers.

    Args:
        images: where each row is.
        rows: which images, in this order.
        preprocess: how each is prepared.
        resizes: resize all images in the decoders; if not, those for which `Preprocess.can_resize_later` holds come as they are decoded.
        batch: images per batch; the last batch may be shorter.
        workers: decoder processes; 0 for one on each available processor, at most 32.
        prefetch_batches: batches decoded ahead of the consumer, which bounds the memory.
        timeout_s: seconds that one image may take to read and decode.
        memory_bytes: memory that one image may take.
        allocate: gives the memory for pixels; it is called from any thread.
        sizes_only: read headers and fill `image_size` only, to plan a ragged file; pixels are empty.

    Raises:
        DecodeError: while iterating: decoder processes cannot be started.
    """

    def __init__(
        self,
        images: ImageSource,
        rows: Sequence[int] | NDArray[np.int64],
        preprocess: Preprocess,
        *,
        resizes: bool = True,
        batch: int = 32,
        workers: int = 0,
        prefetch_batches: int = 4,
        timeout_s: float = TIMEOUT_S,
        memory_bytes: int = MEMORY_BYTES,
        allocate: Allocate = allocate_pixels,
        sizes_only: bool = False,
    ) -> None:
        if batch < 1 or prefetch_batches < 1 or workers < 0:
            raise ValueError(f"batch {batch} and prefetch_batches {prefetch_batches} must be at least 1, workers {workers} at least 0")
        self._images, self._rows, self._preprocess = images, np.asarray(rows, np.int64), preprocess
        self._batch, self._prefetch_batches = batch, prefetch_batches
        self._timeout_s, self._memory_bytes, self._sizes_only = timeout_s, memory_bytes, sizes_only
        self._resizes, self._allocate = resizes, allocate
        self.stats = LoaderStats(min(workers or default_workers(), max(len(self._rows), 1)))
        self._changed = threading.Condition()  # guards everything below
        self._slots: dict[int, _Slot] = {}
        self._next_index = 0  # first image that no worker has
        self._next_batch = 0  # first batch that the consumer does not have
        self._decoders: set[DecoderProcess] = set()
        self._failure: BaseException | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self._rows) // self._batch)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[DecodedBatch]:
        """The batches not yet given out. Leaving the loop early closes the loader."""
        try:
            self._start()
            while self._next_batch < len(self):
                yield self._take_batch()
        finally:
            self.close()

    def close(self) -> None:
        """End all decoder processes at once. A second call does nothing."""
        with self._changed:
            self._closed = True
            for decoder in self._decoders:
                decoder.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._slots.clear()

    def _start(self) -> None:
        if self._closed:
            raise ValueError("this loader is closed")
        if not self._threads:
            for number in range(self.stats.workers):
                thread = threading.Thread(target=self._work, name=f"decoder-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)  # only now: one that could not be started cannot be joined

    def _take_batch(self) -> DecodedBatch:
        start = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._closed or self._is_full(self._next_batch))
            self.stats.wait_s += time.monotonic() - start
            if self._failure:
                raise self._failure
            if self._closed:
                raise ValueError("this loader is closed")
            batch = self._slots.pop(self._next_batch).batch
            self._next_batch += 1
            self._changed.notify_all()
        return batch

    def _is_full(self, number: int) -> bool:
        return number in self._slots and self._slots[number].num_missing == 0

    def _take_task(self, *, can_wait: bool) -> _Task | None:
        """The next image, or None if there is none. A worker that still has a reply to read must not wait for the consumer."""

        def is_allowed() -> bool:
            return self._next_index < (self._next_batch + self._prefetch_batches) * self._batch

        with self._changed:
            if can_wait:
                self._changed.wait_for(lambda: self._closed or self._next_index >= len(self._rows) or is_allowed())
            if self._closed or self._next_index >= len(self._rows) or not is_allowed():
                return None
            index, self._next_index = self._next_index, self._next_index + 1
            if index % self._batch == 0:
                self._slots[index // self._batch] = self._new_slot(index)
            return _Task(index)

    def _new_slot(self, index: int) -> _Slot:
        rows = self._rows[index : index + self._batch]
        count, shape = len(rows), self._preprocess.output_shape
        pixels: NDArray[np.uint8] | list[DeviceImage]
        if shape is None or self._sizes_only or not self._resizes:
            pixels = [np.zeros((0, 0, 3), np.uint8)] * count
        else:
            pixels = self._allocate((count, *shape, 3))  # every row is written, or zeroed if it failed, before it is given out
        batch = DecodedBatch(rows, pixels, np.ones(count, bool), np.zeros(count, np.uint8), [""] * count, np.zeros((count, 2), np.int32))
        return _Slot(batch, count)

    def _work(self) -> None:
        """One thread: keep one decoder process busy, and replace it when it dies."""
        worker = _Worker()
        try:
            while self._fill(worker):
                self._receive(worker)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or (None if self._closed else error)
                self._changed.notify_all()
        finally:
            if worker.decoder is not None:
                self._forget(worker.decoder)
                worker.decoder.close()

    def _fill(self, worker: _Worker) -> bool:
        """Send further images to the decoder. Returns whether there is a reply to wait for."""
        while len(worker.tasks) < OPEN_REQUESTS and (task := self._take_task(can_wait=not worker.tasks)):
            worker.tasks.append(task)
            if worker.decoder is not None:
                self._send(worker.decoder, task)
        return bool(worker.tasks) and not self._closed

    def _receive(self, worker: _Worker) -> None:
        """Wait for the reply to the oldest task, and store it."""
        if worker.decoder is None:
            worker.decoder = self._start_decoder()
            for task in worker.tasks:
                self._send(worker.decoder, task)
        oldest = worker.tasks[0]
        try:
            reply: Reply | None = worker.decoder.receive(self._timeout_s, allocate=self._allocate_for(oldest))
        except DecoderDiedError as error:
            reply = self._judge(worker.decoder, error, oldest)
            worker.decoder = None
        if reply is not None:
            self._finish(worker.tasks.popleft(), reply)

    def _start_decoder(self) -> DecoderProcess:
        decoder = DecoderProcess(self._preprocess, resizes=self._resizes, memory_bytes=self._memory_bytes)
        with self._changed:
            self._decoders.add(decoder)
            if self._closed:
                decoder.kill()
        try:
            decoder.wait_until_ready()
        except BaseException:
            self._forget(decoder)
            decoder.close()
            raise
        return decoder

    def _forget(self, decoder: DecoderProcess) -> None:
        with self._changed:
            self._decoders.discard(decoder)

    def _send(self, decoder: DecoderProcess, task: _Task) -> None:
        decoder.send(self._images[int(self._rows[task.index])], is_size_only=self._sizes_only)

    def _allocate_for(self, task: _Task) -> Allocate:
        number, place = divmod(task.index, self._batch)
        pixels = self._slots[number].batch.pixels
        if isinstance(pixels, np.ndarray):  # its rows have the one shape that the decoder may answer
            return lambda shape: pixels[place]
        return self._allocate

    def _judge(self, decoder: DecoderProcess, error: DecoderDiedError, task: _Task) -> Reply | None:
        """The reply for an image at which a decoder died. None after the first death, because the image may be innocent."""
        self._forget(decoder)
        text = decoder.close_after(error)
        task.num_deaths += 1
        return Reply(Status.CRASHED, text) if task.num_deaths > 1 or error.reason == "timeout" else None

    def _finish(self, task: _Task, reply: Reply) -> None:
        number, place = divmod(task.index, self._batch)
        with self._changed:
            slot = self._slots[number]
            batch, stats = slot.batch, self.stats
            if reply.pixels is not None and isinstance(batch.pixels, list):
                batch.pixels[place], batch.is_resized[place] = reply.pixels, reply.is_resized
            elif reply.status != Status.OK and isinstance(batch.pixels, np.ndarray):
                batch.pixels[place] = 0  # a decoder that died may have sent a part
            batch.status[place], batch.errors[place], batch.image_size[place] = reply.status, reply.error, reply.image_size
            stats.num_images += 1
            stats.num_failed += reply.status != Status.OK
            stats.read_s += reply.read_s
            stats.decode_s += reply.decode_s
            slot.num_missing -= 1
            if slot.num_missing == 0:
                self._changed.notify_all()


def scan_image_sizes(
    images: Manifest, preprocess: Preprocess, *, workers: int = 0, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> NDArray[np.int32]:
    """The upright (height, width) of every image from its header, (N, 2) int32 in pixels; 0 if it cannot be read.

    Arguments as for `Loader`; `preprocess` gives the limits.
    """
    sizes = np.zeros((len(images), 2), np.int32)
    rows = np.arange(len(images))
    with Loader(
        images,
        rows,
        preprocess,
        batch=256,
        workers=workers,
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
        sizes_only=True,
    ) as loader:
        for batch in loader:
            sizes[batch.rows] = batch.image_size
    return sizes
