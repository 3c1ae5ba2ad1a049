"""The images of a run as a sorted list, and from one entry of it to the bytes of that image."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import DecodeError, SourceError
from dino_extract.images.archive import ArchiveIndex, is_archive, is_zip, read_archive_index, read_range, read_zip_member
from dino_extract.names import printable
from dino_extract.status import Status

MAX_FILE_BYTES = 512 * 2**20  # no photograph is larger; a wrong file should not fill the memory


class ImageError(DecodeError):
    """One image that cannot be used: the status of its row and the text beside it (stage, error, message)."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class ImageRef(NamedTuple):
    """Where the bytes of one image lie."""

    path: bytes  # absolute path of the file, or of the archive that holds it
    offset: int  # its place inside the archive (see `archive.Member`); -1 for a file of its own
    size: int  # bytes
    key: bytes
    archive_size: int = -1  # bytes of the archive when it was listed; -1: not known, or a file of its own
    archive_mtime_ns: int = 0


@dataclass(frozen=True, eq=False)
class Manifest:
    """All images of a run, sorted by the bytes of their keys.

    `root` and a key are enough to find an image again (see `resolve`).
    """

    root: bytes  # absolute: the one folder or archive that was given, else the working directory
    sources: tuple[bytes, ...]  # as given, made absolute; `-` stands for a list on stdin
    keys: list[bytes]
    file_size: NDArray[np.int64]  # (N,) bytes
    file_mtime_ns: NDArray[np.int64]  # (N,)
    containers: tuple[bytes, ...]  # absolute paths of archives
    container: NDArray[np.int32]  # (N,) index into `containers`, -1 for a file of its own
    offset: NDArray[np.int64]  # (N,) place inside its container, -1 for a file of its own
    container_stamps: tuple[tuple[int, int], ...]  # (bytes, mtime in ns) of each container when it was listed
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> how many were left out
    unread: dict[bytes, str] = field(default_factory=dict)  # start of the keys that may be there -> what could not be looked into

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> ImageRef:
        key, container = self.keys[row], int(self.container[row])
        if container < 0:
            return ImageRef(os.path.join(self.root, key), -1, int(self.file_size[row]), key)
        return ImageRef(self.containers[container], int(self.offset[row]), int(self.file_size[row]), key, *self.container_stamps[container])

    def shard(self, number: int, count: int) -> Manifest:
        """Part `number` of `count`, from 1: about as many images each, by a hash of the key, so that images that come later move none."""
        mine = [row for row, key in enumerate(self.keys) if zlib.crc32(key) % count == number - 1]
        rows = np.array(mine, np.int64)
        return replace(
            self,
            keys=[self.keys[row] for row in mine],
            file_size=self.file_size[rows],
            file_mtime_ns=self.file_mtime_ns[rows],
            container=self.container[rows],
            offset=self.offset[rows],
        )


def resolve(root: bytes, key: bytes, *, stamp: tuple[int, int] | None = None) -> ImageRef:
    """Where the image of a stored key is now, inside an archive too.

    Args:
        root: the manifest's root, absolute.
        key: the image's key in that manifest.
        stamp: the (bytes, mtime in ns) that it must still have; None takes what there is.

    Raises:
        SourceError: there is no such file or member, or it has changed.
    """
    path = os.path.join(root, key)
    if os.path.isfile(path):
        info = os.stat(path)
        found, now = ImageRef(path, -1, info.st_size, key), (info.st_size, info.st_mtime_ns)
    else:
        head, member_name = (root, key) if is_archive(root) else _split_at_archive(path)
        index = _archive_index(head, os.stat(head).st_mtime_ns) if head else None
        if index is None or member_name not in index.members:
            raise SourceError(f"`{printable(key)}` is no longer in `{printable(root)}`")
        member = index.members[member_name]
        found = ImageRef(head, member.offset, member.size, key, index.archive_size, index.archive_mtime_ns)
        now = (member.size, member.mtime_ns)
    if stamp not in (None, now):
        raise SourceError(f"`{printable(key)}` in `{printable(root)}` has changed")
    return found


@lru_cache(maxsize=4)  # images of a few shards, one by one, must not have their headers read again each time
def _archive_index(path: bytes, mtime_ns: int) -> ArchiveIndex:
    return read_archive_index(path)


def manifest_of(root: bytes, images: Sequence[ImageRef]) -> Manifest:
    """A manifest of images that `resolve` has found, in their order; times are not known and stand as 0."""
    stamps = {image.path: (image.archive_size, image.archive_mtime_ns) for image in images if image.offset >= 0}
    containers = tuple(sorted(stamps))
    number_of = {path: number for number, path in enumerate(containers)}
    return Manifest(
        root=root,
        sources=(root,),
        keys=[image.key for image in images],
        file_size=np.array([image.size for image in images], np.int64),
        file_mtime_ns=np.zeros(len(images), np.int64),
        containers=containers,
        container=np.array([number_of[image.path] if image.offset >= 0 else -1 for image in images], np.int32),
        offset=np.array([image.offset for image in images], np.int64),
        container_stamps=tuple(stamps[path] for path in containers),
    )


def _split_at_archive(path: bytes) -> tuple[bytes, bytes]:
    for found in re.finditer(rb"\.(?:tar|zip)/", path, re.IGNORECASE):
        head = path[: found.end() - 1]
        if os.path.isfile(head):
            return head, path[found.end() :]
    return b"", b""


def read_image_bytes(ref: ImageRef, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of one image; never waits on a FIFO or device and never reads more than `max_bytes`.

    Raises:
        ImageError: the file has gone, or its archive is another than was listed (VANISHED), is too large (TOO_LARGE), or unreadable.
    """
    try:
        descriptor = os.open(ref.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # without O_NONBLOCK a FIFO would wait for ever
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise ImageError(Status.UNREADABLE, "read: not a regular file")
            if ref.archive_size >= 0 and (info.st_size, info.st_mtime_ns) != (ref.archive_size, ref.archive_mtime_ns):
                raise ImageError(Status.VANISHED, "read: the archive was replaced during the run")  # its members may lie elsewhere now
            size = ref.size if ref.offset >= 0 else info.st_size
            if size > max_bytes:
                raise ImageError(Status.TOO_LARGE, f"read: {size:,} bytes, more than {max_bytes:,}")
            if ref.offset >= 0 and is_zip(ref.path):
                return read_zip_member(descriptor, ref.offset, size)
            return b"".join(read_range(descriptor, max(ref.offset, 0), size))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise ImageError(Status.VANISHED, "read: the file has gone") from None
    except OSError as error:
        raise ImageError(Status.UNREADABLE, f"read: {type(error).__name__}: {error.strerror}") from error
    except zipfile.BadZipFile as error:
        raise ImageError(Status.UNREADABLE, f"read: {error}") from error
