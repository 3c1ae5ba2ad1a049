"""From SOURCE arguments to a sorted manifest of images."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from dino_extract.errors import SourceError
from dino_extract.images.archive import is_archive, read_archive_index
from dino_extract.images.manifest import Manifest
from dino_extract.images.suffixes import UNREADABLE_ARCHIVES, is_hidden, reason_to_skip
from dino_extract.names import clean_key, printable

AnyPath = str | bytes | os.PathLike[str]
Sources = AnyPath | Iterable[AnyPath]
_TakeFile = Callable[[os.DirEntry[bytes], bytes], None]  # a file of a folder, and its key


def find_images(
    sources: Sources,
    *,
    suffixes: str | Sequence[str] = (),
    stdin: BinaryIO | None = None,
    leave_out: AnyPath | None = None,
) -> Manifest:
    """The images of all sources as one sorted manifest.

    Keys are relative to the source where it is one folder or one archive; else they are the paths as typed, and members of an archive
    follow its path (`shards/000.tar/cat.jpg`). An image that is reached twice is listed once.

    Args:
        sources: folders, files, quoted globs, `.tar` and `.zip` archives, `-` (one path per line on stdin) or `-0` (paths ended by NUL).
        suffixes: take exactly these from folders, globs and archives (`.heic`), instead of everything that may be an image.
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
    if len(typed) == 1 and typed[0] not in (b"-", b"-0") and (os.path.isdir(typed[0]) or is_archive(typed[0])):
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
            hint="archives in a folder are not looked into: name them, for example `photos/*.zip`"
            if finder.skipped.keys() & {".tar", ".zip"}
            else "expected folders, images, globs, .tar or .zip archives, or a list of them on stdin",
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
            elif is_archive(match):
                self._add_archive(match, clean_key(match))
            else:
                self._add_file(match, os.path.basename(match), clean_key(match), os.stat)
        self._add_folders(folders)

    def add_list(self, paths: Iterable[bytes]) -> None:
        """Every path of a list; what cannot be an image gets a row that will fail, so that one lost file does not end the run."""
        num_listed = num_missing = 0
        for path in paths:
            num_listed += 1
            try:
                self.add_path(path, clean_key(path))
            except SourceError:  # as what it is: reading it will say
                num_missing += not os.path.lexists(path)
                self.add(clean_key(path), 0, 0)
        if num_listed and num_missing == num_listed:
            raise SourceError(
                f"none of the {num_listed:,} listed paths exists", hint="paths in a list are relative to the working directory"
            )

    def add_path(self, path: bytes, key: bytes) -> None:
        """A folder, an archive, or one file; its keys start with `key`."""
        with _reading(path):
            info = os.stat(path)
            if stat.S_ISDIR(info.st_mode):
                os.scandir(path).close()  # a forbidden sub-folder is noted and passed over, a forbidden source is an error
        if stat.S_ISDIR(info.st_mode):
            self._add_folders([(path, key)])
        elif not stat.S_ISREG(info.st_mode):
            raise SourceError(f"`{printable(path)}` is neither a folder nor a regular file")
        elif is_archive(path):
            self._add_archive(path, key)
        elif path.lower().endswith(tuple(map(str.encode, UNREADABLE_ARCHIVES))):
            raise SourceError(
                f"`{printable(path)}` is an archive that cannot be read in place",
                hint="give a `.zip`, a `.tar` without compression, or a folder",
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

    def _add_archive(self, path: bytes, key: bytes) -> None:
        index = read_archive_index(path)
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


def _absolute(path: bytes) -> bytes:
    path = clean_key(os.path.join(os.getcwdb(), path))
    return os.path.realpath(path) if b".." in path.split(b"/") else path
