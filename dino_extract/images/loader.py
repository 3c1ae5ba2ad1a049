"""Images in fixed-size batches of pixels, in row order, decoded ahead of the model by isolated processes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dino_extract.images.decoder_process import MEMORY_BYTES, TIMEOUT_S, Allocate, DecoderDiedError, DecoderProcess, Reply, allocate_pixels
from dino_extract.images.manifest import ImageRef, Manifest
from dino_extract.images.preprocess import Jpeg, Picture, Preprocess
from dino_extract.status import Status

MAX_WORKERS = 32  # so many decode and resize small photographs about as fast as one parent can pass them on
OPEN_REQUESTS = 2  # per child: the next image waits in its pipe while the reply to this one is being read


class ImageSource(Protocol):
    """Anything that knows where image `row` lies; a `Manifest` does."""

    def __getitem__(self, row: int, /) -> ImageRef: ...


@dataclass
class DecodedBatch:
    """B images in row order; those that failed have zero pixels and say why."""

    rows: NDArray[np.int64]  # (B,)
    # (B, h, w, 3) RGB; for `native`, and where the decoders do not resize, a list of (h, w, 3), (0, 0, 3) where failed, or JPEGs
    pixels: NDArray[np.uint8] | list[Picture]
    is_resized: NDArray[np.bool_]  # (B,) whether they are what the model sees, or as decoded
    status: NDArray[np.uint8]  # (B,) Status
    errors: list[str]  # empty where OK
    image_size: NDArray[np.int32]  # (B, 2) upright (height, width) of the originals in pixels, 0 where not known

    def settle(self) -> None:
        """Take over what became of JPEGs that were decoded beside the model."""
        for place, image in enumerate(self.pixels):
            if isinstance(image, Jpeg) and image.error:
                self.status[place], self.errors[place] = Status.UNREADABLE, image.error


@dataclass
class LoaderStats:
    """Where the time went, in seconds; reading and decoding are summed over all decoder processes."""

    num_workers: int
    num_images: int = 0
    num_failed: int = 0
    num_restarts: int = 0
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
    num_deaths: int = 0  # of decoders that had it in hand


def default_num_workers(num_processes: int = 1) -> int:
    """The processors this process may use, between 1 and 32; its part of them, where several processes like it share the machine.

    A model that runs on the CPU shares them too.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(available // num_processes, 1), MAX_WORKERS)


class Loader:
    """Iterates over batches of decoded images; a context manager, because child processes work ahead for it.

    An image whose decoder dies is tried once more in a fresh one, so that a decoder killed from outside costs nothing; the second
    death, or one timeout, makes it `CRASHED`. The same rows give the same pixels whatever the number of workers.

    Args:
        images: where each row lies.
        rows: which images, in this order.
        preprocess: what is made of each.
        resizes: the decoders resize all images; if not, those that may wait (`Preprocess.may_wait`) come as they are decoded.
        batch_size: images per batch; the last batch may be shorter.
        num_workers: decoder processes; 0: one for each available processor, at most 32.
        prefetch_batches: batches decoded ahead of the consumer, which bounds the memory.
        timeout_s: what one image may take to read and decode.
        memory_bytes: what one image may take in memory.
        allocate: gives the memory for pixels; from any thread.
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
        batch_size: int = 32,
        num_workers: int = 0,
        prefetch_batches: int = 4,
        timeout_s: float = TIMEOUT_S,
        memory_bytes: int = MEMORY_BYTES,
        allocate: Allocate = allocate_pixels,
        sizes_only: bool = False,
    ) -> None:
        if batch_size < 1 or prefetch_batches < 1 or num_workers < 0:
            raise ValueError(
                f"batch_size {batch_size}, prefetch_batches {prefetch_batches} and num_workers {num_workers} must be at least 1"
            )
        self._images, self._rows, self._preprocess = images, np.asarray(rows, np.int64), preprocess
        self._batch_size, self._prefetch_batches = batch_size, prefetch_batches
        self._timeout_s, self._memory_bytes, self._sizes_only = timeout_s, memory_bytes, sizes_only
        self._resizes, self._allocate = resizes, allocate
        self.stats = LoaderStats(min(num_workers or default_num_workers(), max(len(self._rows), 1)))
        self._changed = threading.Condition()  # guards everything below
        self._slots: dict[int, _Slot] = {}
        self._next_index = 0  # first image not handed to a worker
        self._next_batch = 0  # first batch not handed to the consumer
        self._decoders: set[DecoderProcess] = set()
        self._failure: BaseException | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self._rows) // self._batch_size)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[DecodedBatch]:
        """The batches not yet handed out; leaving the loop early closes the loader."""
        try:
            self._start()
            while self._next_batch < len(self):
                yield self._take_batch()
        finally:
            self.close()

    def close(self) -> None:
        """End all decoder processes at once; harmless when called again."""
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
            for number in range(self.stats.num_workers):
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
        """The next image, None when there is none; a worker that still has a reply to read must not wait for the consumer."""

        def is_allowed() -> bool:
            return self._next_index < (self._next_batch + self._prefetch_batches) * self._batch_size

        with self._changed:
            if can_wait:
                self._changed.wait_for(lambda: self._closed or self._next_index >= len(self._rows) or is_allowed())
            if self._closed or self._next_index >= len(self._rows) or not is_allowed():
                return None
            index, self._next_index = self._next_index, self._next_index + 1
            if index % self._batch_size == 0:
                self._slots[index // self._batch_size] = self._new_slot(index)
            return _Task(index)

    def _new_slot(self, index: int) -> _Slot:
        rows = self._rows[index : index + self._batch_size]
        count, shape = len(rows), self._preprocess.output_shape
        pixels: NDArray[np.uint8] | list[Picture]
        if shape is None or self._sizes_only or not self._resizes:
            pixels = [np.zeros((0, 0, 3), np.uint8)] * count
        else:
            pixels = self._allocate((count, *shape, 3))  # every row is written, or zeroed where it failed, before it is handed out
        batch = DecodedBatch(rows, pixels, np.ones(count, bool), np.zeros(count, np.uint8), [""] * count, np.zeros((count, 2), np.int32))
        return _Slot(batch, count)

    def _work(self) -> None:
        """One thread: keep one decoder process busy, and replace it when it dies."""
        pending: deque[_Task] = deque()
        decoder: DecoderProcess | None = None
        try:
            while True:
                while len(pending) < OPEN_REQUESTS and (task := self._take_task(can_wait=not pending)):
                    pending.append(task)
                    if decoder is not None:
                        self._send(decoder, task)
                if not pending or self._closed:
                    return
                if decoder is None:
                    decoder = self._start_decoder()
                    for task in pending:
                        self._send(decoder, task)
                try:
                    reply: Reply | None = self._receive(decoder, pending[0])
                except DecoderDiedError as error:
                    reply = self._judge(decoder, str(error), pending[0])
                    decoder = None
                if reply is not None:
                    self._finish(pending.popleft(), reply)
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or (None if self._closed else error)
                self._changed.notify_all()
        finally:
            if decoder is not None:
                self._discard(decoder)

    def _start_decoder(self) -> DecoderProcess:
        decoder = DecoderProcess(self._preprocess, resizes=self._resizes, memory_bytes=self._memory_bytes)
        with self._changed:
            self._decoders.add(decoder)
            if self._closed:
                decoder.kill()
        try:
            decoder.wait_until_ready()
        except BaseException:
            self._discard(decoder)
            raise
        return decoder

    def _discard(self, decoder: DecoderProcess, *, wait_s: float = 0.0) -> str:
        with self._changed:
            self._decoders.discard(decoder)
        return decoder.close(wait_s)

    def _send(self, decoder: DecoderProcess, task: _Task) -> None:
        decoder.send(self._images[int(self._rows[task.index])], is_size_only=self._sizes_only)

    def _receive(self, decoder: DecoderProcess, task: _Task) -> Reply:
        number, place = divmod(task.index, self._batch_size)
        pixels = self._slots[number].batch.pixels
        if isinstance(pixels, np.ndarray):  # whose rows have the one shape that the decoder may answer
            return decoder.receive(self._timeout_s, allocate=lambda shape: pixels[place])
        return decoder.receive(self._timeout_s, allocate=self._allocate)

    def _judge(self, decoder: DecoderProcess, reason: str, task: _Task) -> Reply | None:
        """The reply that stands for a death: none at the first, because the image may be innocent; `CRASHED` otherwise."""
        ending = self._discard(decoder, wait_s=0.0 if reason else 1.0)
        with self._changed:
            self.stats.num_restarts += 1
        task.num_deaths += 1
        is_timeout = reason.startswith("timed out")
        if task.num_deaths < 2 and not is_timeout:
            return None
        return Reply(Status.CRASHED, f"decode: {reason or ending}", None, True, (0, 0), 0.0, 0.0)

    def _finish(self, task: _Task, reply: Reply) -> None:
        number, place = divmod(task.index, self._batch_size)
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
    images: Manifest, preprocess: Preprocess, *, num_workers: int = 0, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> NDArray[np.int32]:
    """The upright (height, width) of every image from its header, (N, 2) int32 in pixels; 0 where it cannot be read.

    Arguments as for `Loader`; `preprocess` gives the limits.
    """
    sizes = np.zeros((len(images), 2), np.int32)
    rows = np.arange(len(images))
    with Loader(
        images,
        rows,
        preprocess,
        batch_size=256,
        num_workers=num_workers,
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
        sizes_only=True,
    ) as loader:
        for batch in loader:
            sizes[batch.rows] = batch.image_size
    return sizes
