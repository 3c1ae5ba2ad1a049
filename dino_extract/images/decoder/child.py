"""The child: answers requests until its stdin ends."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

from dino_extract.images.containers import ImageError, ImageRef
from dino_extract.images.decode import MAX_ERROR_CHARS, plain_jpeg_size, read_image_size
from dino_extract.images.decoder.wire import READY, Form, ReplyHeader, read_request, write_all
from dino_extract.images.pixels import prepare_image
from dino_extract.images.preprocess import Preprocess
from dino_extract.images.reading import read_image_bytes
from dino_extract.status import Status

Size = tuple[int, int]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def answer(ref: ImageRef, options: Preprocess, *, resizes: bool, is_size_only: bool) -> tuple[bytes, bytes]:
    """The reply to a request: the numbers with the error text, and the pixels."""
    start = middle = time.perf_counter()
    status, error, form, size, image_size, pixels = Status.OK, "", Form.RESIZED, (0, 0), (0, 0), b""
    try:
        content = read_image_bytes(ref, max_bytes=options.max_bytes)
        middle = time.perf_counter()
        if is_size_only:
            image_size = read_image_size(content, max_pixels=options.max_pixels)
        else:
            form, size, image_size, pixels = _pixels(content, options, resizes=resizes)
    except MemoryError:
        status, error = Status.CRASHED, "decode: out of memory"
    except ImageError as problem:
        status, error = problem.status, problem.message[:MAX_ERROR_CHARS]
    text = error.encode(errors="replace")
    seconds = middle - start, time.perf_counter() - middle
    return ReplyHeader(status, form, len(text), *size, *image_size, *seconds).pack() + text, pixels


def _pixels(content: bytes, options: Preprocess, *, resizes: bool) -> tuple[Form, Size, Size, bytes]:
    """(form, size of the pixels, size of the image, pixels) of a reply."""
    jpeg_size = plain_jpeg_size(content, max_pixels=options.max_pixels) if options.decode == "device" else None
    if jpeg_size and options.can_resize_later(*jpeg_size, is_jpeg=True):
        return Form.JPEG, (1, len(content)), jpeg_size, content
    image = prepare_image(content, options, resizes=resizes)
    pixels, form = image.pixels, Form.RESIZED if image.is_resized else Form.AS_DECODED
    return form, (pixels.height, pixels.width), image.size, pixels.tobytes()


def main(settings_json: str, answer: Callable[..., tuple[bytes, bytes]] = answer) -> None:
    """Run the child until stdin ends. That happens when the parent ends, however it ends."""
    settings = json.loads(settings_json)
    requests, replies = _take_over_pipes()
    _die_with_parent(settings["parent"])
    _limit_resources(settings["memory_bytes"])
    options = Preprocess.from_record(settings["preprocess"])
    try:
        write_all(replies, READY)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # from here on nobody reads it: C libraries write about damaged files
        while request := read_request(requests):
            ref, is_size_only = request
            write_all(replies, *answer(ref, options, resizes=settings["resizes"], is_size_only=is_size_only))
    except BrokenPipeError:
        os._exit(0)  # the parent has ended, and flushing at exit would only fail again


def _take_over_pipes() -> tuple[BinaryIO, int]:
    """Move the pipes to descriptors that no library knows, so that a library that prints to stdout does not disturb the replies."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return requests, replies


def _die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the parent is killed, even while an image is decoded."""
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
