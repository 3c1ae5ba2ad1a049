"""The parent's end: starts a child, sends requests, and believes no reply that an honest child would not give.

The child is a fresh interpreter and not a fork, and needs no `if __name__ == "__main__"` in the user's script.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from dino_extract.errors import DecodeError
from dino_extract.images.containers import ImageRef
from dino_extract.images.decode import MAX_ERROR_CHARS
from dino_extract.images.decoder.wire import READY, REPLY_BYTES, Form, ReplyHeader, pack_request, write_all
from dino_extract.images.pixels import Allocate, allocate_pixels
from dino_extract.images.preprocess import MAX_ASPECT, DeviceImage, Jpeg, Preprocess
from dino_extract.status import Status

MEMORY_BYTES = 2 * 2**30  # for one image; 100 megapixels need about 1 GB
TIMEOUT_S = 30.0  # the slowest honest images (100 megapixels, progressive) take about 5 s
START_TIMEOUT_S = 120.0  # interpreter and imports, from a cold network disk
EXIT_STATUS_S = 1.0  # for a child that has ended to report its exit status
PIPE_BYTES = 2**20  # a whole reply with resized pixels fits, so that the child can go on while the parent is busy
_SLICE_S = 1.0  # the longest single wait before it is counted against the deadline

# -I keeps the working directory (it may be the image folder) and PYTHON* variables out; the module path is exactly the parent's.
# Ctrl-C reaches the whole process group, and a scheduler's signals the whole job: the parent decides what to do about them.
CHILD_PROGRAM = """
import signal, sys
for number in signal.SIGINT, signal.SIGTERM, signal.SIGUSR1:
    signal.signal(number, signal.SIG_IGN)
sys.path[:] = sys.argv[2:]
from dino_extract.images.decoder.child import main
main(sys.argv[1])
"""
# Without these glibc and Pillow give large blocks back after each image and the kernel zeroes them again for the next: 25-40 % of the time.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "PILLOW_BLOCKS_MAX": "8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class DecoderDiedError(Exception):
    """The child has ended, does not answer in time, or has given a reply that no honest child gives (`reason`)."""

    def __init__(self, reason: Literal["ended", "timeout", "nonsense"], text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Reply:
    """The answer about one image.

    Args:
        status: OK or a failure.
        error: text for `/error`, empty if OK.
        pixels: (h, w, 3) uint8, or a JPEG as it is; None if failed or if only the size was asked for.
        is_resized: whether the pixels are what the model sees.
        image_size: upright (height, width) of the original in pixels, (0, 0) if not known.
        read_s: seconds of reading.
        decode_s: seconds of decoding and resizing.
    """

    status: Status
    error: str = ""
    pixels: DeviceImage | None = None
    is_resized: bool = True
    image_size: tuple[int, int] = (0, 0)
    read_s: float = 0.0
    decode_s: float = 0.0


class DecoderProcess:
    """A running child. Only `kill` may be called from several threads.

    Args:
        options: how the child prepares each image.
        resizes: resize all images; if not, those for which `Preprocess.can_resize_later` holds come as they are decoded.
        memory_bytes: address space that the child may take beyond what it starts with.

    Raises:
        DecodeError: the child does not start.
    """

    def __init__(self, options: Preprocess, *, resizes: bool = True, memory_bytes: int = MEMORY_BYTES) -> None:
        self._options, self._resizes = options, resizes
        settings = json.dumps({"preprocess": options.as_record(), "resizes": resizes, "memory_bytes": memory_bytes, "parent": os.getpid()})
        path = [os.path.abspath(entry) for entry in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", CHILD_PROGRAM, settings, *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **_ENVIRONMENT},
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr, "pipes were asked for"
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        with contextlib.suppress(OSError, AttributeError):  # only speed: the pipe keeps its size where the kernel or user limit says no
            fcntl.fcntl(self._replies, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._replies, False)
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        self._size_only: deque[bool] = deque()  # of the open requests

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Return when the child has imported all modules that it needs.

        Raises:
            DecodeError: the child has ended instead; the message holds the last line that it wrote.
        """
        assert self._process.stderr
        try:
            self._read(len(READY), _Deadline(START_TIMEOUT_S))
        except DecoderDiedError as error:
            self.kill()
            lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            raise DecodeError(f"the decoder process does not start: {lines[-1] if lines else error}") from error

    def send(self, ref: ImageRef, *, is_size_only: bool = False) -> None:
        """Ask for one image, or only for its size. At most two requests may be open: more could fill the pipe and block both ends."""
        self._size_only.append(is_size_only)
        with contextlib.suppress(BrokenPipeError):  # the child is dead, which `receive` reports
            write_all(self._requests, pack_request(ref, is_size_only=is_size_only))

    def receive(self, timeout_s: float = TIMEOUT_S, *, allocate: Allocate = allocate_pixels) -> Reply:
        """The reply to the oldest open request.

        Args:
            timeout_s: seconds that the child may take for it.
            allocate: gives the array for the pixels.

        Raises:
            DecoderDiedError: there will be no reply that can be used; call `close_after`.
        """
        deadline = _Deadline(timeout_s)
        header = ReplyHeader.unpack(self._read(REPLY_BYTES, deadline))
        is_size_only = self._size_only.popleft()
        status = _believable_status(header.status)
        error = self._read(header.error_bytes, deadline).decode(errors="replace")[:MAX_ERROR_CHARS]
        pixels: DeviceImage | None = None
        if status == Status.OK and not is_size_only:
            pixels = self._read_pixels(header, deadline, allocate)
        elif header.height or header.width:
            raise _nonsense()
        is_resized = pixels is None or header.form == Form.RESIZED
        return Reply(status, error, pixels, is_resized, (header.image_height, header.image_width), header.read_s, header.decode_s)

    def kill(self) -> None:
        """End the child at once. May be called from another thread, and twice."""
        self._process.kill()

    def close(self, wait_s: float = 0.0) -> str:
        """End the child and free its pipes. Returns how it ended, for example `decoder crashed (signal 11)`.

        Args:
            wait_s: seconds that the child may take to end by itself, so that its own exit status is seen.
        """
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)
        self._process.kill()
        code = self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()
        return f"decoder crashed (signal {-code})" if code < 0 else f"decoder ended with code {code}"

    def close_after(self, error: DecoderDiedError) -> str:
        """Close after `receive` has failed. Returns the reason as a text for `/error`."""
        if error.reason == "ended":
            return f"decode: {self.close(EXIT_STATUS_S)}"
        self.close()
        return f"decode: {error}"

    def _read_pixels(self, header: ReplyHeader, deadline: _Deadline, allocate: Allocate) -> DeviceImage:
        """The pixels that a header announces. Takes no memory for a size that no honest child announces."""
        size, image_size = (header.height, header.width), (header.image_height, header.image_width)
        if min(size) < 1 or not self._is_expected(header.form, size, image_size):
            raise _nonsense()
        if header.form == Form.JPEG:
            content = allocate_pixels((header.width,))
            self._read_into(content.data, deadline)
            return Jpeg(content, image_size)
        pixels = allocate((*size, 3))
        self._read_into(pixels.data.cast("B"), deadline)
        return pixels

    def _is_expected(self, form: int, size: tuple[int, int], image_size: tuple[int, int]) -> bool:
        if form == Form.RESIZED:
            return self._is_result(*size)
        if form == Form.AS_DECODED:
            return not self._resizes and self._options.can_resize_later(*size)
        is_asked = form == Form.JPEG and self._options.decode == "device" and min(image_size) > 0
        return (
            is_asked and size[0] == 1 and size[1] <= self._options.max_bytes and self._options.can_resize_later(*image_size, is_jpeg=True)
        )

    def _is_result(self, height: int, width: int) -> bool:
        if self._options.output_shape is not None:
            return (height, width) == self._options.output_shape
        side, patch = self._options.height, self._options.patch
        is_grid = height % patch == 0 and width % patch == 0
        return is_grid and min(height, width) == side and max(height, width) <= MAX_ASPECT * side

    def _read(self, num_bytes: int, deadline: _Deadline) -> bytearray:
        content = bytearray(num_bytes)
        self._read_into(memoryview(content), deadline)
        return content

    def _read_into(self, target: memoryview, deadline: _Deadline) -> None:
        have = 0
        while have < len(target):
            try:
                count = os.readv(self._replies, [target[have:]])
            except BlockingIOError:
                self._wait(deadline)
                continue
            if not count:
                raise DecoderDiedError("ended", "the decoder has ended")
            have += count

    def _wait(self, deadline: _Deadline) -> None:
        while True:
            start = time.monotonic()
            if self._poll.poll(1000 * min(_SLICE_S, deadline.left_s)):
                return
            deadline.left_s -= min(time.monotonic() - start, 2 * _SLICE_S)
            if deadline.left_s <= 0:
                raise DecoderDiedError("timeout", f"timed out after {deadline.total_s:g} s")


class _Deadline:
    """Seconds left for one image. Counted in short waits, so that a run stopped with Ctrl-Z and continued has lost two seconds at most."""

    def __init__(self, total_s: float) -> None:
        self.total_s = self.left_s = total_s


def _nonsense() -> DecoderDiedError:
    return DecoderDiedError("nonsense", "decoder answered nonsense")


def _believable_status(number: int) -> Status:
    try:
        status = Status(number)
    except ValueError as problem:
        raise _nonsense() from problem
    if status == Status.PENDING:
        raise _nonsense()
    return status
