"""Both ends of one decoder process: a child that reads, decodes and resizes images, so that a crash costs one image and not the run.

The child is a fresh interpreter and not a fork, and it needs no `if __name__ == "__main__"` in the user's script. Requests and replies are
numbers in fixed places, then texts and pixels as long as those say. Nothing is pickled: a hostile image may have taken the child over.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import DecodeError
from dino_extract.images.decode import MAX_ERROR_CHARS, open_upright, plain_jpeg_size, read_image_size
from dino_extract.images.manifest import ImageError, ImageRef, read_image_bytes
from dino_extract.images.preprocess import MAX_ASPECT, Jpeg, Picture, Preprocess, preprocess_picture
from dino_extract.status import Status

MEMORY_BYTES = 2 * 2**30  # what one image may take; 100 megapixels need about 1 GB
TIMEOUT_S = 30.0  # the slowest honest images (100 megapixels, progressive) take about 5 s
START_TIMEOUT_S = 120.0  # interpreter and imports, from a cold network disk
PIPE_BYTES = 2**20  # a whole reply with resized pixels fits, so that the child can go on while the parent is busy
_SLICE_S = 1.0  # how long one wait may take before it is counted against the deadline
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# offset, size, size and time of the archive, bytes of the path and of the key that follow; 1 to ask for the size only
_REQUEST = struct.Struct("<qqqqIIB")
# Status, form of the pixels, bytes of the error that follows, (h, w) of the pixels that follow, (1, bytes) of a JPEG, or (0, 0),
# (h, w) of the image, seconds
_REPLY = struct.Struct("<BBHiiiidd")
_AS_DECODED, _RESIZED, _JPEG = range(3)  # forms

# -I keeps the working directory (it may be the image folder) and PYTHON* variables out; the module path is the parent's, word for word.
# Ctrl-C reaches the whole process group, and what a scheduler sends the whole job: what to do about it is the parent's business.
_COMMAND = """
import signal, sys
for number in signal.SIGINT, signal.SIGTERM, signal.SIGUSR1:
    signal.signal(number, signal.SIG_IGN)
sys.path[:] = sys.argv[2:]
from dino_extract.images.decoder_process import main
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


# Gives the contiguous uint8 array for pixels of a shape (h, w, 3).
Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


def allocate_pixels(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory of this process, not cleared."""
    return np.empty(shape, np.uint8)


class DecoderDiedError(Exception):
    """The child is gone or not to be trusted any more; the text says how."""


@dataclass(frozen=True)
class Reply:
    """What became of one image.

    `pixels` is (h, w, 3) uint8, or a JPEG as it is, where the status is OK, else None; `is_resized` whether they are what the model sees.
    `image_size` is the upright (height, width) of the original in pixels, (0, 0) where it is not known.
    """

    status: Status
    error: str
    pixels: Picture | None
    is_resized: bool
    image_size: tuple[int, int]
    read_s: float
    decode_s: float


class DecoderProcess:
    """A running child. Not for several threads, except `kill`.

    Args:
        options: what the child makes of each image.
        resizes: all images; if not, it leaves those that may wait (`Preprocess.may_wait`) as they are decoded.
        memory_bytes: address space it may take beyond what it starts with.

    Raises:
        DecodeError: the child does not start.
    """

    def __init__(self, options: Preprocess, *, resizes: bool = True, memory_bytes: int = MEMORY_BYTES) -> None:
        self._options, self._resizes = options, resizes
        settings = json.dumps({"preprocess": options.as_record(), "resizes": resizes, "memory_bytes": memory_bytes, "parent": os.getpid()})
        path = [os.path.abspath(entry) for entry in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _COMMAND, settings, *path],
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
        """Return when the child has imported all it needs.

        Raises:
            DecodeError: it has ended instead; the message holds the last line it wrote.
        """
        assert self._process.stderr
        try:
            self._read_exactly(memoryview(bytearray(1)), _Deadline(START_TIMEOUT_S))
        except DecoderDiedError as error:
            self.kill()
            lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            raise DecodeError(f"the decoder process does not start: {lines[-1] if lines else error}") from error

    def send(self, ref: ImageRef, *, is_size_only: bool = False) -> None:
        """Ask for one image, or only for its size. At most two requests may be open: more could fill the pipe and block both ends."""
        numbers = (ref.offset, ref.size, ref.archive_size, ref.archive_mtime_ns, len(ref.path), len(ref.key), is_size_only)
        request = _REQUEST.pack(*numbers) + ref.path + ref.key
        self._size_only.append(is_size_only)
        with contextlib.suppress(BrokenPipeError):  # the child is dead: `receive` finds out and says how
            _write(self._requests, request)

    def receive(self, timeout_s: float = TIMEOUT_S, *, allocate: Allocate = allocate_pixels) -> Reply:
        """The reply to the oldest open request.

        Args:
            timeout_s: how long the child may take for it.
            allocate: gives the array for the pixels.

        Raises:
            DecoderDiedError: the child has died, hangs, or has answered what makes no sense.
        """
        deadline = _Deadline(timeout_s)
        header = bytearray(_REPLY.size)
        self._read_exactly(memoryview(header), deadline)
        has_pixels = not self._size_only.popleft()
        number, form, error_bytes, height, width, *image_size_and_seconds = _REPLY.unpack(header)
        image_height, image_width, read_s, decode_s = image_size_and_seconds
        try:
            status = Status(number)
        except ValueError as problem:
            raise DecoderDiedError("decoder answered nonsense") from problem
        if status == Status.PENDING:
            raise DecoderDiedError("decoder answered nonsense")
        text = bytearray(error_bytes)
        self._read_exactly(memoryview(text), deadline)
        error = text.decode(errors="replace")[:MAX_ERROR_CHARS]
        if not (has_pixels and status == Status.OK):
            if height or width:
                raise DecoderDiedError("decoder answered nonsense")
            return Reply(status, error, None, True, (image_height, image_width), read_s, decode_s)
        image_size = image_height, image_width
        if min(height, width) < 1 or not self._is_expected(form, (height, width), image_size):
            raise DecoderDiedError("decoder answered nonsense")
        pixels = allocate_pixels((width,)) if form == _JPEG else allocate((height, width, 3))
        self._read_exactly(pixels.data.cast("B"), deadline)
        return Reply(status, error, Jpeg(pixels, image_size) if form == _JPEG else pixels, form == _RESIZED, image_size, read_s, decode_s)

    def kill(self) -> None:
        """End the child at once; may be called from another thread, and twice."""
        self._process.kill()

    def close(self, wait_s: float = 0.0) -> str:
        """End the child, free its pipes, and say how it had ended, for example `decoder crashed (signal 11)`.

        Args:
            wait_s: how long the child may take to end by itself, so that its own exit status is seen.
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

    def _is_expected(self, form: int, size: tuple[int, int], image_size: tuple[int, int]) -> bool:
        if form == _RESIZED:
            return self._is_result(*size)
        if form == _AS_DECODED:
            return not self._resizes and self._options.may_wait(*size)
        is_asked = form == _JPEG and self._options.decode == "device" and min(image_size) > 0
        return is_asked and size[0] == 1 and size[1] <= self._options.max_bytes and self._options.may_wait(*image_size, is_jpeg=True)

    def _is_result(self, height: int, width: int) -> bool:
        if self._options.output_shape is not None:
            return (height, width) == self._options.output_shape
        side, patch = self._options.height, self._options.patch
        is_grid = height % patch == 0 and width % patch == 0
        return is_grid and min(height, width) == side and max(height, width) <= MAX_ASPECT * side

    def _read_exactly(self, target: memoryview, deadline: _Deadline) -> None:
        have = 0
        while have < len(target):
            try:
                count = os.readv(self._replies, [target[have:]])
            except BlockingIOError:
                self._wait(deadline)
                continue
            if not count:
                raise DecoderDiedError("")
            have += count

    def _wait(self, deadline: _Deadline) -> None:
        while True:
            start = time.monotonic()
            if self._poll.poll(1000 * min(_SLICE_S, deadline.left_s)):
                return
            deadline.left_s -= min(time.monotonic() - start, 2 * _SLICE_S)
            if deadline.left_s <= 0:
                raise DecoderDiedError(f"timed out after {deadline.total_s:g} s")


class _Deadline:
    """Seconds left for one image. Counted in short waits, so that a run stopped with Ctrl-Z and continued has lost two seconds at most."""

    def __init__(self, total_s: float) -> None:
        self.total_s = self.left_s = total_s


def main(settings_json: str) -> None:
    """Run the child: answer requests until stdin ends, which it does when the parent is gone, however it went."""
    settings = json.loads(settings_json)
    requests, replies = _take_over_pipes()
    _die_with_parent(settings["parent"])
    _limit_resources(settings["memory_bytes"])
    options = Preprocess.from_record(settings["preprocess"])
    try:
        _write(replies, b"!")  # ready
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # from here on nobody reads it: C libraries talk about damaged files
        while header := requests.read(_REQUEST.size):
            offset, size, archive_size, archive_mtime_ns, path_bytes, key_bytes, is_size_only = _REQUEST.unpack(header)
            ref = ImageRef(requests.read(path_bytes), offset, size, requests.read(key_bytes), archive_size, archive_mtime_ns)
            _write(replies, *_answer(ref, options, resizes=settings["resizes"], is_size_only=bool(is_size_only)))
    except BrokenPipeError:
        os._exit(0)  # the parent is gone, and flushing at exit would only fail again


def _answer(ref: ImageRef, options: Preprocess, *, resizes: bool, is_size_only: bool) -> tuple[bytes, bytes]:
    """The reply to a request: numbers with the error text, and pixels."""
    start = middle = time.perf_counter()
    status, error, size, image_size, pixels, form = Status.OK, "", (0, 0), (0, 0), b"", _RESIZED
    try:
        content = read_image_bytes(ref, max_bytes=options.max_bytes)
        middle = time.perf_counter()
        if is_size_only:
            image_size = read_image_size(content, max_pixels=options.max_pixels)
        elif jpeg_size := _size_to_decode_later(content, options):
            form, pixels, size, image_size = _JPEG, content, (1, len(content)), jpeg_size
        else:
            reduce_to = (options.height, options.width) if options.fast_decode else None
            picture, image_size = open_upright(content, max_pixels=options.max_pixels, alpha=options.alpha, reduce_to=reduce_to)
            form = _RESIZED if resizes or not options.may_wait(picture.height, picture.width) else _AS_DECODED
            if form == _RESIZED:
                picture = preprocess_picture(picture, options)
            pixels, size = picture.tobytes(), (picture.height, picture.width)
    except MemoryError:
        status, error = Status.CRASHED, "decode: out of memory"
    except ImageError as problem:
        status, error = problem.status, problem.message[:MAX_ERROR_CHARS]
    text = error.encode(errors="replace")
    seconds = middle - start, time.perf_counter() - middle
    return _REPLY.pack(status, form, len(text), *size, *image_size, *seconds) + text, pixels


def _size_to_decode_later(content: bytes, options: Preprocess) -> tuple[int, int] | None:
    """The (height, width) of an image that is to be decoded beside the model; None for any other."""
    size = plain_jpeg_size(content, max_pixels=options.max_pixels) if options.decode == "device" else None
    return size if size and options.may_wait(*size, is_jpeg=True) else None


def _take_over_pipes() -> tuple[BinaryIO, int]:
    """The pipes on descriptors nobody else knows; a library that prints to stdout reaches nobody instead of the protocol."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return requests, replies


def _die_with_parent(parent: int) -> None:
    """A parent that is killed takes the child along, even while that decodes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(0)


def _limit_resources(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a decoder writes no files
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            limit = int(file.read().split()[0]) * resource.getpagesize() + memory_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_AS)  # a batch system may have set less already
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _write(descriptor: int, *parts: bytes) -> None:
    """Write everything, in one call where the pipe has room, so that the reader is woken once."""
    rest = [memoryview(part) for part in parts if part]
    while rest:
        count = os.writev(descriptor, rest)
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][count:]
