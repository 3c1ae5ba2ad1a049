"""Write results whole or not at all, one process at a time. Embeddings files have a stronger protocol of their own in `store`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator

from dino_extract.errors import ConfigError, DinoExtractError
from dino_extract.names import printable, quoted

PathLike = str | os.PathLike[str]
Sync = Callable[[int], None]
Failures = tuple[type[Exception], ...]

# The file system, or the C library, has no such call: go on without it.
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
_NO_LOCKS = UNSUPPORTED | {errno.ENOLCK}  # network file systems without a lock service answer this
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_STORE_ATTRIBUTE = b"dino_extract_format"  # stored near the start, because a store writes its attributes first
_SEARCHED_NBYTES = 1 << 20
_NAME_CHARS = 40  # of the result's name that are part of the temporary one: a name may have 255 bytes, a character up to four


@contextlib.contextmanager
def writing(
    path: PathLike, what: str, *, also: Failures = (), error: type[DinoExtractError] = ConfigError, hint: str | None = None
) -> Iterator[None]:
    """Run the code that writes a result, and turn its failures into one sentence.

    Args:
        path: file or folder that is written.
        what: the word for it in the message.
        also: further exceptions that mean a failed write. Pillow and matplotlib raise ValueError for an unknown suffix; torch and
            faiss raise RuntimeError for a full disk.
        error: class of the error that is raised.
        hint: of the error that is raised.

    Raises:
        ConfigError: the path is an embeddings file, which took hours to make and is never replaced by another kind of result.
    """
    name = os.fspath(path)
    if _is_embeddings_file(name):
        raise ConfigError(f"{what} `{name}` would replace a file of embeddings", hint="choose another name")
    failures: Failures = (OSError, *also)
    try:
        yield
    except failures as failure:
        cause = failure if isinstance(failure, OSError) else failure.__context__  # torch's own error hides that of the disk
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else failure
        raise error(f"{what} `{name}` cannot be written: {reason}", hint=hint) from failure


def check_target(path: PathLike | None, what: str, *, overwrite: bool = False) -> None:
    """Check before hours of work that a result file can be written where it is wanted; None is not checked.

    Raises:
        ConfigError: as `writing`; or the file exists and `overwrite` is False.
    """
    if path is None:
        return
    with writing(path, what):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.stat(os.path.join(os.path.dirname(path), "") or ".")  # with a slash at the end, so that a file in place of the folder is found
        if not overwrite:
            _refuse_existing(path, what, ConfigError)


def require_folder(path: PathLike) -> None:
    """Check that the folder of a target exists.

    Raises:
        ConfigError: it does not.
    """
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        shown = printable(os.fsencode(path))
        raise ConfigError(f"`{shown}` cannot be written: its folder does not exist", hint=f"`mkdir -p {quoted(os.fspath(folder))}`")


@contextlib.contextmanager
def replace_atomically(
    path: PathLike,
    what: str,
    *,
    overwrite: bool = False,
    also: Failures = (),
    error: type[DinoExtractError] = ConfigError,
    hint: str | None = None,
    sync: Sync = os.fsync,
) -> Iterator[str]:
    """Give a temporary path, and rename what the block wrote there to `path` when the block ends without an exception.

    The block writes a file or makes a folder. Until the rename, `path` is what it was before; after it, the new content is on the disk.
    A symlink stays, and its target is replaced. The mode of the replaced file, and its owner where permitted, are kept. The temporary
    path has the file name of `path`, because many libraries choose the format by the suffix. A device or pipe is written directly.

    Args:
        path: file or folder to write.
        what: the word for it in messages.
        overwrite: replace an existing file or folder.
        also: see `writing`.
        error: see `writing`.
        hint: see `writing`.
        sync: called with the descriptor of each file and folder; returns when its content is on the disk.

    Raises:
        ConfigError: as `writing`, or `path` exists and `overwrite` is False.
    """
    target = os.path.realpath(path)
    with writing(path, what, also=also, error=error, hint=hint):
        if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
            yield target
            return
        if not overwrite:
            _refuse_existing(path, what, error)
        with _temporary_folder(target) as (folder, new_file_mode):
            draft = os.path.join(folder, os.path.basename(target))
            yield draft
            _set_mode(draft, target, new_file_mode)
            _sync_tree(draft, sync)
            if not overwrite:
                _refuse_existing(path, what, error)  # another process may have written it meanwhile
            _publish(draft, target)
            sync_folder(os.path.dirname(target), sync)


def sync_folder(folder: PathLike, sync: Sync = os.fsync) -> None:
    """Return when the names in a folder would survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


class FileLock:
    """An exclusive lock that ends with its process, on a file of its own that is deleted when the lock is released.

    It is `flock`, which Linux passes to the server on NFS. Without locks in the file system, `is_held` is False.
    The package `filelock` is not used: it leaves its file behind, and without `flock` it falls back to a file whose existence is the
    lock, which stays after SIGKILL and would stop the command that continues the work.

    Args:
        path: the lock file. Never the data itself: HDF5 refuses to read a file that somebody has locked.
        on_wait: called once if another process holds the lock, which is then waited for.

    Raises:
        BlockingIOError: another process holds the lock, and `on_wait` is None.
        OSError: the lock file cannot be made.
    """

    def __init__(self, path: PathLike, *, on_wait: Callable[[], None] | None = None) -> None:
        self.path = path
        self.is_held = True
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(on_wait)
            except BaseException:
                os.close(self._descriptor)
                raise
            if self._has_name():
                return
            os.close(self._descriptor)  # its last holder has just deleted it: a new file is needed

    def _lock(self, on_wait: Callable[[], None] | None) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                self.is_held = False
            elif error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            elif on_wait is None:
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK)) from error
            else:
                on_wait()
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def _has_name(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Delete the file and release the lock; a second call does nothing."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # a file that stays does no harm
                if self._has_name():  # deleted while it is locked, so that a process that waits sees that the file has no name any more
                    os.unlink(self.path)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


@contextlib.contextmanager
def _temporary_folder(target: str) -> Iterator[tuple[str, int]]:
    """A new folder beside `target`, of a random name and closed to other users, and the mode that the system gives new files.

    A lock in the folder shows that its process lives, and leftovers without one are deleted. A process number in the name would not do:
    on a shared file system it is of another machine or container. A lock on the draft itself would not do either: some libraries put
    another file in its place, and HDF5 locks it too.
    """
    parent, name = os.path.split(target)
    prefix = f".{name[:_NAME_CHARS]}."
    with os.scandir(parent) as entries:
        leftovers = [entry.path for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(".tmp")]
    for leftover in leftovers:
        _delete_if_abandoned(leftover)
    while True:
        folder = tempfile.mkdtemp(".tmp", prefix, parent)
        try:
            lock = FileLock(_lock_path(folder))
        except (BlockingIOError, FileNotFoundError):
            continue  # another process took the folder, which had no lock yet, for a leftover
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        break
    with lock:
        try:
            yield folder, stat.S_IMODE(os.stat(lock.path).st_mode)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lock_path(folder: str) -> str:
    return os.path.join(folder, os.path.basename(folder) + ".lock")


def _delete_if_abandoned(folder: str) -> None:
    with contextlib.suppress(OSError), FileLock(_lock_path(folder)) as lock:  # its process lives, or it belongs to another user
        if lock.is_held:
            shutil.rmtree(folder, ignore_errors=True)


def _set_mode(draft: str, target: str, new_file_mode: int) -> None:
    with contextlib.suppress(PermissionError):  # not ours to give away, or a file system without modes
        if not os.path.exists(target):
            if os.path.isfile(draft):
                os.chmod(draft, new_file_mode)  # safetensors makes files that other users cannot read
            return
        replaced = os.stat(target)
        os.chmod(draft, stat.S_IMODE(replaced.st_mode))
        os.chown(draft, replaced.st_uid, replaced.st_gid)


def _sync_tree(draft: str, sync: Sync) -> None:
    if os.path.isdir(draft):
        for folder, _, names in os.walk(draft):
            for name in names:
                _sync_file(os.path.join(folder, name), sync)
            sync_folder(folder, sync)
    else:
        _sync_file(draft, sync)


def _sync_file(path: str, sync: Sync) -> None:
    with open(path, "rb") as file:
        sync(file.fileno())


def _publish(draft: str, target: str) -> None:
    if not (os.path.isdir(draft) and os.path.isdir(target)):
        os.replace(draft, target)
        return
    replaced = draft + ".replaced"  # a folder cannot take the place of one that is not empty; deleted with the temporary folder
    os.rename(target, replaced)
    try:
        os.rename(draft, target)
    except OSError:
        os.rename(replaced, target)
        raise


def _refuse_existing(path: PathLike, what: str, error: type[DinoExtractError]) -> None:
    if os.path.isfile(path) or (os.path.isdir(path) and os.listdir(path)):
        raise error(f"{what} `{os.fspath(path)}` is already there", hint="`overwrite=True` replaces it")


def _is_embeddings_file(path: str) -> bool:
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE and _STORE_ATTRIBUTE in file.read(_SEARCHED_NBYTES)
    except OSError:  # writing it will fail too, and give the reason
        return False
