"""The protocol that folders and archives share, and how one image of them is named.

To add a kind of container, write a module with a class like `tar.Tar` and add one row to `reading.CONTAINERS`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from dino_extract.errors import DecodeError, SourceError
from dino_extract.images.suffixes import is_hidden, reason_to_skip
from dino_extract.names import printable
from dino_extract.status import Status

FILE = "file"  # kind of an image that is a file of its own
MAX_FILE_BYTES = 512 * 2**20  # no photograph is larger; a wrong file should not fill the memory


class ImageError(DecodeError):
    """One image cannot be used. Holds the status of its row and the text for `/error` (stage, error, message)."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class Entry(NamedTuple):
    """One image that a container lists."""

    key: bytes
    size: int  # bytes of the image, unpacked
    mtime_ns: int
    token: int = 0  # where the image is, in a number that its container alone understands; it must fit int64


class ImageRef(NamedTuple):
    """Where the bytes of one image are. `ImageRef(path, path)` is a file of its own."""

    key: bytes
    path: bytes  # absolute path of the file, or of the container that holds it
    kind: str = FILE  # the container that reads it: see `reading.CONTAINERS`
    token: int = 0  # as in its `Entry`
    size: int = 0  # bytes when it was listed
    stamp: tuple[int, int] | None = None  # (bytes, mtime in ns) of the container when it was listed; None: not checked


class FileFilter:
    """Decides which files are taken as images, and counts the others by reason.

    Args:
        suffixes: take exactly these, lower case; empty takes everything that may be an image; None takes every file.
        leave_out: path of a file that is never taken, because the run writes it.

    Attributes:
        skipped: reason -> number of files that were left out.
        unread: start of keys -> the folder, file or archive that could not be read and may hold such keys.
    """

    def __init__(self, suffixes: tuple[str, ...] | None = (), leave_out: str | bytes | os.PathLike[str] | None = None) -> None:
        self.suffixes = suffixes
        self.skipped: Counter[str] = Counter()
        self.unread: dict[bytes, str] = {}
        self._left_out: tuple[int, int] | None = None
        if leave_out is not None and os.path.exists(leave_out):
            info = os.stat(leave_out)
            self._left_out = info.st_dev, info.st_ino

    def takes(self, name: bytes) -> bool:
        """Whether a file is taken, by its name without the folder."""
        reason = None if self.suffixes is None else reason_to_skip(name, self.suffixes)
        if reason is not None:
            self.skipped[reason] += 1
        return reason is None

    def takes_member(self, path: bytes) -> bool:
        """Whether a member of an archive is taken, by its path in the archive."""
        *folders, name = path.split(b"/")
        if self.suffixes is not None and any(map(is_hidden, folders)):
            self.skipped["hidden"] += 1
            return False
        return self.takes(name)

    def takes_file(self, info: os.stat_result) -> bool:
        """Whether a file is taken, by its stat: the output of the run and special files are not."""
        if (info.st_dev, info.st_ino) == self._left_out:
            self.skipped["the file that is written"] += 1
        elif not stat.S_ISREG(info.st_mode):
            self.skipped["special file"] += 1
        else:
            return True
        return False

    def note_unread(self, what: str, start_of_keys: bytes) -> None:
        """Record that `what` could not be read."""
        self.skipped[what] += 1
        self.unread[start_of_keys] = what


class Container(Protocol):
    """One kind of file or folder that holds images."""

    kind: str  # unique name, which manifests and requests to decoder processes carry

    def serves(self, path: bytes, mode: int) -> bool:
        """Whether this container lists the path.

        Args:
            path: as the user gave it.
            mode: `st_mode` of the file there; 0 if there is no such file, which an address on a network may accept.
        """
        ...

    def entries(self, path: bytes, key: bytes, wanted: FileFilter) -> Iterable[Entry]:
        """List the images.

        Args:
            path: the container.
            key: its own key, with which the keys of its images begin; empty if it is the only source.
            wanted: decides which are taken, and records what could not be read.

        Raises:
            SourceError: nothing of the container can be read.
        """
        ...

    def read(self, ref: ImageRef, max_bytes: int) -> bytes:
        """Read one image.

        Raises:
            ImageError: it has more than `max_bytes`, or cannot be read.
            OSError: the file system refuses it.
        """
        ...


def start_of_keys(key: bytes) -> bytes:
    """The bytes with which keys in a container of this key begin.

    >>> start_of_keys(b"shards/0.tar"), start_of_keys(b"")
    (b'shards/0.tar/', b'')
    """
    return key + b"/" if key else b""


def unreadable_source(path: bytes, error: OSError) -> SourceError:
    """The error for a source that the file system does not let us read."""
    return SourceError(f"`{printable(path)}` cannot be read: {error.strerror}")


@contextlib.contextmanager
def opened(ref: ImageRef) -> Iterator[tuple[int, os.stat_result]]:
    """The descriptor and the stat of the regular file at `ref.path`. Never waits for a FIFO or a device.

    Raises:
        ImageError: it is not a regular file, or the container was replaced since it was listed.
    """
    descriptor = os.open(ref.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # without O_NONBLOCK a FIFO would wait for ever
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(Status.UNREADABLE, "read: not a regular file")
        if ref.stamp not in (None, (info.st_size, info.st_mtime_ns)):  # its members may be elsewhere now
            raise ImageError(Status.VANISHED, "read: the archive was replaced during the run")
        yield descriptor, info
    finally:
        os.close(descriptor)


def read_range(descriptor: int, offset: int, size: int, *, max_bytes: int | None = None) -> bytes:
    """The `size` bytes at `offset` of an open file; fewer if the file is shorter.

    Raises:
        ImageError: `size` is more than `max_bytes`.
    """
    require_small(size, max_bytes)
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def require_small(size: int, max_bytes: int | None) -> None:
    """Refuse an image of more than `max_bytes`.

    Raises:
        ImageError: it has more.
    """
    if max_bytes is not None and size > max_bytes:
        raise ImageError(Status.TOO_LARGE, f"read: {size:,} bytes, more than {max_bytes:,}")
