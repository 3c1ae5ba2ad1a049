"""The few system calls a store is written with, and what their failures mean to the user.

Every byte of a store goes through `write_all`, and every promise of durability through `sync_data` or `sync_folder`;
tests fail each of them once, and cut the power between them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

from dino_extract import files
from dino_extract.errors import StoreError

_CONTINUE_HINT = "what is embedded so far is kept: the same command continues"

# errno -> what stands in the way, and what to do about it
_REASONS = {
    errno.ENOSPC: ("no space left on the disk", "free some space; " + _CONTINUE_HINT),
    errno.EDQUOT: ("the disk quota is used up", "free some space; " + _CONTINUE_HINT),
    errno.EFBIG: ("the file would exceed the largest size allowed here", "raise the limit with `ulimit -f unlimited`; " + _CONTINUE_HINT),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 4096`; " + _CONTINUE_HINT),
    errno.ENFILE: ("too many files are open on this machine", "close other programs; " + _CONTINUE_HINT),
    errno.EIO: ("the disk reports an input/output error", "look for the disk in `dmesg`; " + _CONTINUE_HINT),
    errno.EROFS: ("the file system is read-only", "choose another file with `-o`"),
    errno.EACCES: ("permission denied", "choose another file with `-o`"),
    errno.EPERM: ("permission denied", "choose another file with `-o`"),
    errno.ENOENT: ("no such file or folder", "make the folder first, or choose another file with `-o`"),
    errno.ENOTDIR: ("a part of the path is not a folder", "choose another file with `-o`"),
    errno.ENAMETOOLONG: ("the name is too long", "choose another file with `-o`"),
}

# The system calls that this module uses, each in one place, so that tests can make any of them fail.
pread = os.pread
pwrite = os.pwrite
fsync = os.fsync
fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
replace = os.replace


def store_error(error: OSError, doing: str) -> StoreError:
    """The `StoreError` that tells the user about a failed system call.

    Args:
        error: what the system said.
        doing: the sentence's verb and object, for example "write `out.h5.part`".
    """
    reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), _CONTINUE_HINT))
    return StoreError(f"cannot {doing}: {reason}", hint=hint)


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an `OSError` of the block into the `StoreError` of `store_error`."""
    try:
        yield
    except OSError as error:
        raise store_error(error, doing) from error


def write_all(fd: int, content: Any, offset: int) -> None:
    """Write a contiguous buffer at `offset`, in as many calls as it takes."""
    rest = memoryview(content).cast("B")
    while rest:
        try:
            written = pwrite(fd, rest, offset)
        except InterruptedError:
            continue
        if written == 0:
            raise OSError(errno.EIO, "the file system takes no more bytes and gives no reason")
        rest, offset = rest[written:], offset + written


def read_exactly(fd: int, nbytes: int, offset: int) -> bytes:
    """The `nbytes` bytes at `offset`.

    Raises:
        StoreError: the file ends before.
    """
    parts = []
    while nbytes:
        part = pread(fd, nbytes, offset)
        if not part:
            raise StoreError(f"the file ends at byte {offset:,}, {nbytes:,} bytes too early", hint="restore a copy of the file")
        parts.append(part)
        nbytes, offset = nbytes - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sync_data(fd: int) -> None:
    """Return when everything written to `fd` would survive a power cut."""
    _uninterrupted(fdatasync, fd)


def sync_file(fd: int) -> None:
    """The same, for the file's size and times as well."""
    _uninterrupted(fsync, fd)


def _uninterrupted(sync: Callable[[int], None], fd: int) -> None:
    try:
        sync(fd)
    except InterruptedError:
        _uninterrupted(sync, fd)


def sync_folder(path: str) -> None:
    """Return when the names in the folder of `path` would survive a power cut."""
    files.sync_folder(os.path.dirname(path) or ".", sync_file)


def rename(source: str, target: str) -> None:
    """Give `source` the name `target`, replacing what had it, so that a power cut leaves one or the other."""
    replace(source, target)
    sync_folder(target)


def _load_fallocate() -> Callable[[int, int, int, int], int] | None:
    # Not os.posix_fallocate: where a file system cannot reserve, glibc writes one byte per block instead, hours on NFS.
    if sys.platform != "linux":
        return None
    call: Callable[[int, int, int, int], int] = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]  # type: ignore[attr-defined]
    return call


fallocate = _load_fallocate()


def reserve(fd: int, offset: int, nbytes: int) -> None:
    """Have the file system set aside room for `nbytes` bytes at `offset`; does nothing where it cannot.

    Raises:
        OSError: there is no room.
    """
    if fallocate is None or nbytes == 0:
        return
    while fallocate(fd, 0, offset, nbytes) != 0:
        code = ctypes.get_errno()
        if code in files.UNSUPPORTED:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def forget_cache(fd: int) -> None:
    """Let the next reads of `fd` come from the disk instead of memory, as far as the system does that."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def ensure_space(path: str, nbytes: int, held: int = 0) -> None:
    """Check before any work that a file of `nbytes` bytes fits beside `path`, of which `held` are there or will never be needed.

    Raises:
        StoreError: the disk or the file size limit is too small; names both numbers.
    """
    with explained(f"look at the folder of `{path}`"):
        disk = os.statvfs(os.path.dirname(path) or ".")
    free = disk.f_bavail * disk.f_frsize
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and nbytes > limit:
        message = f"`{path}` needs {_size(nbytes)}, the file size limit here is {_size(limit)}"
        raise StoreError(message, hint="raise the limit with `ulimit -f unlimited`")
    if nbytes - held > free:
        beside = " beside the file that it replaces" if os.path.exists(path) else ""
        message = f"`{path}` needs {_size(nbytes - held)}{beside}, the disk has {_size(free)} free"
        raise StoreError(
            message, hint="free some space, choose another disk with `-o`, or store less with `--store-dtype float16` or fewer `--tokens`"
        )


def _size(nbytes: int) -> str:
    """`1,234,567 bytes (1.2 MB)`."""
    value, unit = float(nbytes), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if value < 1000 or unit == "PB":
            break
        value /= 1000
    return f"{nbytes:,} bytes" if unit == "bytes" else f"{nbytes:,} bytes ({value:.1f} {unit})"
