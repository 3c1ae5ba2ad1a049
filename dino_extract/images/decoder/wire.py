"""The format of requests and replies: numbers in fixed places, then bytes of the lengths that the numbers state.

Nothing is pickled, because a hostile image may have taken over the child.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import BinaryIO, NamedTuple

from dino_extract.images.containers import ImageRef

READY = b"!"  # the first byte that a child writes

# Token, size, bytes and time of the container (-1 and 0 if not checked), lengths of the kind, path and key that follow, is_size_only
_REQUEST = struct.Struct("<qqqqBIIB")
# Status, form, length of the error that follows, (h, w) of the pixels that follow, (h, w) of the image, seconds of reading and decoding
_REPLY = struct.Struct("<BBHiiiidd")
REPLY_BYTES = _REPLY.size


class Form(IntEnum):
    """What the pixels of a reply are."""

    AS_DECODED = 0
    RESIZED = 1
    JPEG = 2  # the bytes of the file; (h, w) is (1, number of bytes)


class ReplyHeader(NamedTuple):
    """The numbers of a reply, as they came: nothing is checked."""

    status: int
    form: int = Form.RESIZED
    error_bytes: int = 0
    height: int = 0  # of the pixels that follow; 0 if there are none
    width: int = 0
    image_height: int = 0  # of the image, upright; 0 if not known
    image_width: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0

    def pack(self) -> bytes:
        """The first `REPLY_BYTES` bytes of a reply."""
        return _REPLY.pack(*self)

    @classmethod
    def unpack(cls, header: bytes | bytearray) -> ReplyHeader:
        """The numbers of a reply."""
        return cls(*_REPLY.unpack(header))


def pack_request(ref: ImageRef, *, is_size_only: bool) -> bytes:
    """A request for one image, or only for its size."""
    kind = ref.kind.encode()
    numbers = ref.token, ref.size, *(ref.stamp or (-1, 0)), len(kind), len(ref.path), len(ref.key), is_size_only
    return _REQUEST.pack(*numbers) + kind + ref.path + ref.key


def read_request(requests: BinaryIO) -> tuple[ImageRef, bool] | None:
    """The next request as (image, is_size_only). None at the end, when the parent has ended."""
    header = requests.read(_REQUEST.size)
    if not header:
        return None
    token, size, container_bytes, mtime_ns, kind_bytes, path_bytes, key_bytes, is_size_only = _REQUEST.unpack(header)
    kind, path, key = (requests.read(length) for length in (kind_bytes, path_bytes, key_bytes))
    stamp = (container_bytes, mtime_ns) if container_bytes >= 0 else None
    return ImageRef(key, path, kind.decode(), token, size, stamp), bool(is_size_only)


def write_all(descriptor: int, *parts: bytes) -> None:
    """Write everything, in one call if the pipe has room, so that the reader is woken once."""
    rest = [memoryview(part) for part in parts if part]
    while rest:
        count = os.writev(descriptor, rest)
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][count:]
