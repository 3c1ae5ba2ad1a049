"""One writer per embeddings file."""

from __future__ import annotations

import warnings

from dino_extract.errors import DinoExtractWarning, StoreBusyError
from dino_extract.files import FileLock
from dino_extract.store import disk


class StoreWarning(DinoExtractWarning):
    """Something about a store the user should know of, that does not stop the run."""


def lock_for_writing(path: str) -> FileLock:
    """Lock `out.h5.lock` for the process that writes `out.h5`. The data file itself is never locked, so that readers are never refused.

    Raises:
        StoreBusyError: another process holds the lock.
        StoreError: the lock file cannot be made.
    """
    lock_path = path + ".lock"
    with disk.explained(f"write beside `{path}`"):
        try:
            lock = FileLock(lock_path)
        except BlockingIOError as error:
            message = f"another process is writing `{path}` (it holds `{lock_path}`)"
            raise StoreBusyError(message, hint="wait until it has ended, then run the same command again") from error
    if not lock.is_held:
        warnings.warn(f"the file system of `{path}` has no locks: make sure that only one process writes it", StoreWarning, stacklevel=3)
    return lock
