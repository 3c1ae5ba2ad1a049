"""One writer per file: a lock that dies with its process and leaves no trace when it is given back."""

from __future__ import annotations

import errno
import fcntl
import os
import warnings

from dino_extract.errors import DinoExtractWarning, StoreBusyError
from dino_extract.store import disk

# What network file systems without a lock service answer.
_NO_LOCKS = disk.UNSUPPORTED | {errno.ENOLCK}


class StoreWarning(DinoExtractWarning):
    """Something about a store the user should know of, that does not stop the run."""


class WriterLock:
    """An exclusive lock on `path`, the file `out.h5.lock`; the data file itself is never locked, so that readers are never refused.

    Raises:
        StoreBusyError: another process holds it.
        StoreError: the lock file cannot be made.
    """

    def __init__(self, path: str, *, guards: str) -> None:
        self.path = path
        with disk.explained(f"write beside `{guards}`"):
            self._fd = _lock(path, guards)

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._fd >= 0:
            # Unlinked while still held: whoever waits on this inode sees that it has no name any more.
            if _names(self.path, self._fd):
                os.unlink(self.path)
            os.close(self._fd)
            self._fd = -1


def _lock(path: str, guards: str) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"the file system of `{guards}` has no locks: make sure that only one process writes it", StoreWarning, stacklevel=4
                )
                return fd
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                message = f"another process is writing `{guards}` (it holds `{path}`)"
                raise StoreBusyError(message, hint="wait until it has ended, then run the same command again") from error
            raise
        if _names(path, fd):
            return fd
        os.close(fd)  # its holder has just finished and removed it


def _names(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
