"""From SOURCE arguments to a sorted manifest of images, and from one entry of it to the bytes of that image."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_extract.archive import clean_key, read_tar_index
from dino_extract.errors import DecodeError, SourceError
from dino_extract.status import Status
from dino_extract.suffixes import UNREADABLE_ARCHIVES, is_hidden, reason_to_skip

MAX_FILE_BYTES = 512 * 2**20  # no photograph is larger; a wrong file should not fill the memory


class ImageError(DecodeError):
    """One image that cannot be used: the status of its row and the text beside it (stage, error, message)."""

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class ImageRef(NamedTuple):
    """Where the bytes of one image lie."""

    path: bytes  # absolute path of the file, or of the tar that holds it
    offset: int  # first byte inside a tar; -1 for a file of its own
    size: int  # bytes
    key: bytes
    archive_size: int = -1  # bytes of the tar when it was listed; -1: not known, or a file of its own
    archive_mtime_ns: int = 0


@dataclass(frozen=True, eq=False)
class Manifest:
    """All images of a run, sorted by the bytes of their keys.

    `root` and a key are enough to find an image again (see `resolve`).
    """

    root: bytes  # absolute: the one folder or tar that was given, else the working directory
    sources: tuple[bytes, ...]  # as given, made absolute; `-` stands for a list on stdin
    keys: list[bytes]
    file_size: NDArray[np.int64]  # (N,) bytes
    file_mtime_ns: NDArray[np.int64]  # (N,)
    containers: tuple[bytes, ...]  # absolute paths of tars
    container: NDArray[np.int32]  # (N,) index into `containers`, -1 for a file of its own
    offset: NDArray[np.int64]  # (N,) first byte inside its container, -1 for a file of its own
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


AnyPath = str | bytes | os.PathLike[str]
_TakeFile = Callable[[os.DirEntry[bytes], bytes], None]  # a file of a folder, and its key


def find_images(
    sources: AnyPath | Sequence[AnyPath],
    *,
    suffixes: str | Sequence[str] = (),
    stdin: BinaryIO | None = None,
    leave_out: AnyPath | None = None,
) -> Manifest:
    """The images of all sources as one sorted manifest.

    Keys are relative to the source where it is one folder or one tar; else they are the paths as typed, and members of a tar follow
    its path (`shards/000.tar/cat.jpg`). An image that is reached twice is listed once.

    Args:
        sources: folders, files, quoted globs, `.tar` files, `-` (one path per line on stdin) or `-0` (paths ended by NUL).
        suffixes: take exactly these from folders, globs and tars (`.heic`), instead of everything that may be an image.
        stdin: where `-` and `-0` read from, binary.
        leave_out: a file that folders and globs do not give, because it is the one to be written.

    Raises:
        SourceError: a source is missing, of a kind that is not read, or there is no image at all.
    """
    typed = [os.fsencode(source) for source in ([sources] if isinstance(sources, (str, bytes, os.PathLike)) else sources)]
    if not typed:
        raise SourceError("no source given", hint="name a folder of images, for example `dino-extract embed photos/`")
    wanted = [suffixes] if isinstance(suffixes, str) else suffixes
    finder = _Finder(tuple(suffix.lower() if suffix.startswith(".") else f".{suffix.lower()}" for suffix in wanted), leave_out)
    root = os.getcwdb()
    if len(typed) == 1 and typed[0] not in (b"-", b"-0") and (os.path.isdir(typed[0]) or _is_tar(typed[0])):
        root = _absolute(typed[0])
        finder.add_path(root, b"")
    else:
        for source in typed:
            if source in (b"-", b"-0"):
                finder.add_list(_read_list(stdin, b"\n" if source == b"-" else b"\0"))
            else:
                finder.add_source(source)
        finder.drop_same_files(root)
    if not finder.keys:
        what = f"no {', '.join(finder.suffixes)} file" if finder.suffixes else "no file that may be an image"
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in finder.skipped.most_common(3))
        raise SourceError(
            f"`{' '.join(map(printable, typed))}` holds {what}" + (f" (left out: {left_out})" if left_out else ""),
            hint="expected folders, images, globs, .tar shards, or a list of them on stdin",
        )
    absolute = tuple(source if source in (b"-", b"-0") else _absolute(source) for source in typed)
    return finder.manifest(root, absolute)


def require_present(sources: Sequence[str | bytes]) -> None:
    """Fail for a source that is not there, before anything long is begun; lists, globs and folders are not looked into.

    Raises:
        SourceError: a source is missing.
    """
    for source in map(os.fsencode, sources):
        if source not in (b"-", b"-0") and not glob.has_magic(source):
            with _reading(source):
                os.stat(source)


@contextlib.contextmanager
def _reading(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"`{printable(path)}` cannot be read: {error.strerror}") from error


class _Finder:
    """Collects images in the order they are met; columns are arrays because there may be millions."""

    def __init__(self, suffixes: tuple[str, ...], leave_out: AnyPath | None) -> None:
        self.suffixes = suffixes
        self.leave_out = None
        if leave_out is not None and os.path.exists(leave_out):
            info = os.stat(leave_out)
            self.leave_out = info.st_dev, info.st_ino
        self.keys: list[bytes] = []
        self.sizes, self.mtimes, self.offsets, self.container = array("q"), array("q"), array("q"), array("i")
        self.containers: list[bytes] = []
        self.container_stamps: list[tuple[int, int]] = []
        self.skipped: Counter[str] = Counter()
        self.unread: dict[bytes, str] = {}

    def add_source(self, source: bytes) -> None:
        """One typed source; an existing path wins over the same text read as a glob."""
        if os.path.lexists(source) or not glob.has_magic(source):
            self.add_path(source, clean_key(source))
            return
        matches = sorted(set(self._expand(source)))
        if not matches:
            raise SourceError(f"`{printable(source)}` matches no file")
        folders = []
        for match in matches:
            if os.path.isdir(match):
                folders.append((match, clean_key(match)))
            elif _is_tar(match):
                self._add_tar(match, clean_key(match))
            else:
                self._add_file(match, os.path.basename(match), clean_key(match), os.stat)
        self._add_folders(folders)

    def add_list(self, paths: Iterable[bytes]) -> None:
        """Every path of a list; what cannot be an image gets a row that will fail, so that one lost file does not end the run."""
        num_listed = num_missing = 0
        for path in paths:
            num_listed += 1
            if os.path.isdir(path) or os.path.isfile(path):
                self.add_path(path, clean_key(path))
            else:
                num_missing += not os.path.lexists(path)
                self.add(clean_key(path), 0, 0)
        if num_listed and num_missing == num_listed:
            raise SourceError(
                f"none of the {num_listed:,} listed paths exists", hint="paths in a list are relative to the working directory"
            )

    def add_path(self, path: bytes, key: bytes) -> None:
        """A folder, a tar, or one file; its keys start with `key`."""
        with _reading(path):
            info = os.stat(path)
            if stat.S_ISDIR(info.st_mode):
                os.scandir(path).close()  # a forbidden sub-folder is noted and passed over, a forbidden source is an error
        if stat.S_ISDIR(info.st_mode):
            self._add_folders([(path, key)])
        elif not stat.S_ISREG(info.st_mode):
            raise SourceError(f"`{printable(path)}` is neither a folder nor a regular file")
        elif _is_tar(path):
            self._add_tar(path, key)
        elif path.lower().endswith(tuple(map(str.encode, UNREADABLE_ARCHIVES))):
            raise SourceError(
                f"`{printable(path)}` is an archive that cannot be read in place", hint="give a `.tar` without compression, or a folder"
            )
        else:
            self.add(key, info.st_size, info.st_mtime_ns)

    def drop_same_files(self, root: bytes) -> None:
        """Keep the first of several keys that name the same file (`a.jpg` and `/photos/a.jpg`); a link to a file is a file of its own."""
        seen: set[bytes] = set()
        real_folders: dict[bytes, bytes] = {}
        keep = []
        for row, key in enumerate(self.keys):
            folder, base = os.path.split(os.path.join(root, key))
            if folder not in real_folders:
                real_folders[folder] = os.path.realpath(folder)  # `..` behind a link is not the folder that the text says
            name = os.path.join(real_folders[folder], base)
            if name not in seen:
                seen.add(name)
                keep.append(row)
        if len(keep) < len(self.keys):
            self.keys = [self.keys[row] for row in keep]
            for name_of_column in ("sizes", "mtimes", "offsets", "container"):
                column = getattr(self, name_of_column)
                setattr(self, name_of_column, array(column.typecode, (column[row] for row in keep)))

    def manifest(self, root: bytes, sources: tuple[bytes, ...]) -> Manifest:
        """Everything found, in the order of the keys."""
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        rows = np.array(order, np.int64)
        return Manifest(
            root,
            sources,
            [self.keys[row] for row in order],
            file_size=np.frombuffer(self.sizes, np.int64)[rows],
            file_mtime_ns=np.frombuffer(self.mtimes, np.int64)[rows],
            containers=tuple(self.containers),
            container=np.frombuffer(self.container, np.int32)[rows],
            offset=np.frombuffer(self.offsets, np.int64)[rows],
            container_stamps=tuple(self.container_stamps),
            skipped=dict(self.skipped),
            unread=self.unread,
        )

    def add(self, key: bytes, size: int, mtime_ns: int, container: int = -1, offset: int = -1) -> None:
        """One image, as the columns of a `Manifest` have it."""
        self.keys.append(key)
        self.sizes.append(size)
        self.mtimes.append(mtime_ns)
        self.container.append(container)
        self.offsets.append(offset)

    def _is_wanted(self, name: bytes) -> bool:
        """Whether a file of this name is taken from a folder; counts it where it is not."""
        reason = reason_to_skip(name, self.suffixes)
        if reason is not None:
            self.skipped[reason] += 1
        return reason is None

    def _add_tar(self, path: bytes, key: bytes) -> None:
        index = read_tar_index(path)
        self.skipped.update(index.skipped)
        container = len(self.containers)
        self.containers.append(_absolute(path))
        self.container_stamps.append((index.archive_size, index.archive_mtime_ns))
        prefix = key + b"/" if key else b""
        if index.damage:
            self.unread[prefix] = index.damage
        for name, member in index.members.items():
            *folders, base = name.split(b"/")
            if any(map(is_hidden, folders)):
                self.skipped["hidden"] += 1
            elif self._is_wanted(base):
                self.add(prefix + name, member.size, member.mtime_ns, container, member.offset)

    def _add_folders(self, folders: Iterable[tuple[bytes, bytes]]) -> None:
        self._enter(folders, lambda entry, key: self._add_file(entry.path, entry.name, key, lambda _: entry.stat()))

    def _expand(self, pattern: bytes) -> Iterator[bytes]:
        """The paths that match; `**` is each folder below once, where `glob` would follow a link to a folder above for ever."""
        parts = pattern.split(b"/")
        if b"**" not in parts:
            yield from glob.iglob(pattern)
            return
        place = parts.index(b"**")
        above = b"/".join(parts[:place]) or (b"/" if pattern.startswith(b"/") else b".")
        starts = [(match, clean_key(match)) for match in glob.iglob(above) if os.path.isdir(match)]
        for folder in self._enter(starts, lambda entry, key: None):
            yield from self._expand(os.path.join(glob.escape(folder), *(parts[place + 1 :] or [b"*"])))

    def _enter(self, starts: Iterable[tuple[bytes, bytes]], take: _TakeFile) -> list[bytes]:
        """Enter folders and all that lie below them, each once, and give every file and its key to `take`; the folders entered.

        Real folders come first and symlinked ones after them: no loop, and the same keys on every run.
        """
        seen: set[tuple[int, int]] = set()
        entered: list[bytes] = []
        waiting: list[tuple[bytes, bytes]] = []
        links: list[tuple[bytes, bytes]] = []
        for start in starts:
            (links if os.path.islink(start[0]) else waiting).append(start)
        while waiting or links:
            for folder, folder_key in sorted(waiting):
                entered += self._walk(folder, folder_key, seen, links, take)
            waiting, links = links, []
        return entered

    def _walk(
        self, path: bytes, key: bytes, seen: set[tuple[int, int]], links: list[tuple[bytes, bytes]], take: _TakeFile
    ) -> Iterator[bytes]:
        stack = [(path, key)]
        while stack:
            folder, folder_key = stack.pop()
            prefix = folder_key + b"/" if folder_key else b""
            try:
                info = os.stat(folder)
                if (info.st_dev, info.st_ino) in seen:
                    continue
                seen.add((info.st_dev, info.st_ino))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        self._sort_entry(entry, prefix + entry.name, stack, links, take)
            except OSError as error:
                self._note_unread(f"folder `{printable(folder)}` ({error.strerror})", prefix)
            yield folder

    def _sort_entry(
        self,
        entry: os.DirEntry[bytes],
        key: bytes,
        stack: list[tuple[bytes, bytes]],
        links: list[tuple[bytes, bytes]],
        take: _TakeFile,
    ) -> None:
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself, or through a folder that may not be read
            is_folder = False
        if not is_folder:
            take(entry, key)
        elif is_hidden(entry.name):
            self.skipped["hidden folder"] += 1
        else:
            (links if entry.is_symlink() else stack).append((entry.path, key))

    def _add_file(self, path: bytes, name: bytes, key: bytes, stat_of: Callable[[bytes], os.stat_result]) -> None:
        """A file of a folder, or one that a glob has matched: taken if it may be an image, else counted."""
        if not self._is_wanted(name):
            return
        try:
            info = stat_of(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                self.skipped["broken link or vanished file"] += 1
            else:
                self._note_unread(f"`{printable(path)}` ({error.strerror})", key)
            return
        if (info.st_dev, info.st_ino) == self.leave_out:
            self.skipped["the file that is written"] += 1
        elif stat.S_ISREG(info.st_mode):
            self.add(key, info.st_size, info.st_mtime_ns)
        else:
            self.skipped["special file"] += 1

    def _note_unread(self, what: str, start_of_keys: bytes) -> None:
        self.skipped[what] += 1
        self.unread[start_of_keys] = what


def resolve(root: bytes, key: bytes, *, stamp: tuple[int, int] | None = None) -> ImageRef:
    """Where the image of a stored key is now, inside a tar too.

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
        head, member_name = (root, key) if _is_tar(root) else _split_at_tar(path)
        index = read_tar_index(head) if head else None
        if index is None or member_name not in index.members:
            raise SourceError(f"`{printable(key)}` is no longer in `{printable(root)}`")
        member = index.members[member_name]
        found = ImageRef(head, member.offset, member.size, key, index.archive_size, index.archive_mtime_ns)
        now = (member.size, member.mtime_ns)
    if stamp not in (None, now):
        raise SourceError(f"`{printable(key)}` in `{printable(root)}` has changed")
    return found


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


def _split_at_tar(path: bytes) -> tuple[bytes, bytes]:
    end = path.lower().find(b".tar/")
    while end >= 0:
        head, tail = path[: end + 4], path[end + 5 :]
        if os.path.isfile(head):
            return head, tail
        end = path.lower().find(b".tar/", end + 1)
    return b"", b""


def read_image_bytes(ref: ImageRef, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of one image; never waits on a FIFO or device and never reads more than `max_bytes`.

    Raises:
        ImageError: the file has gone, or its tar is another than was listed (VANISHED), is too large (TOO_LARGE), or unreadable.
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
            return b"".join(_read_range(descriptor, max(ref.offset, 0), size))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise ImageError(Status.VANISHED, "read: the file has gone") from None
    except OSError as error:
        raise ImageError(Status.UNREADABLE, f"read: {type(error).__name__}: {error.strerror}") from error


def _read_range(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:  # the file has shrunk: the decoder will say what is wrong with the rest
            return
        yield part
        offset, size = offset + len(part), size - len(part)


def _read_list(stdin: BinaryIO | None, separator: bytes) -> Iterator[bytes]:
    if stdin is None:
        raise SourceError(
            "a list of paths on stdin was asked for, but there is no stdin",
            hint="for example `find photos -name '*.jpg' | dino-extract embed -`",
        )
    rest = b""
    while block := stdin.read(1 << 20):
        if separator == b"\n" and b"\0" in block:
            raise SourceError("the list on stdin has NUL between its paths, expected one path per line", hint="give `-0`")
        *paths, rest = (rest + block).split(separator)
        yield from filter(None, (path.removesuffix(b"\r") if separator == b"\n" else path for path in paths))
    if last := rest.removesuffix(b"\r") if separator == b"\n" else rest:
        yield last


def _is_tar(path: bytes) -> bool:
    return path.lower().endswith(b".tar") and os.path.isfile(path)


def _absolute(path: bytes) -> bytes:
    path = clean_key(os.path.join(os.getcwdb(), path))
    return os.path.realpath(path) if b".." in path.split(b"/") else path


def root_as_text(root: bytes) -> str:
    r"""A root as the text that a file records: bytes that are not UTF-8, and backslashes, as `\xff`; see `root_from_text`."""
    return root.replace(b"\\", rb"\x5c").decode("utf-8", "backslashreplace")


def root_from_text(text: str) -> bytes:
    """The root that `root_as_text` has written down."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())


def printable(path: bytes) -> str:
    """The path as text that is safe on a terminal: control characters and bytes that are not UTF-8 are escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
