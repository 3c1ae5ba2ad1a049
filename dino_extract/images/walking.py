"""The walk over folders, and the folder as a container of images."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from dino_extract.images.containers import FILE, Entry, FileFilter, ImageRef, opened, read_range, start_of_keys
from dino_extract.images.suffixes import is_hidden
from dino_extract.names import printable

PathAndKey = tuple[bytes, bytes]


class Folder:
    """A folder, in which each image is a file of its own. Its files are opened by their own paths, so they need no token."""

    kind = FILE

    def serves(self, path: bytes, mode: int) -> bool:
        """Folders."""
        return stat.S_ISDIR(mode)

    def entries(self, path: bytes, key: bytes, wanted: FileFilter) -> Iterable[Entry]:
        """The files of a folder and of all folders below it. A folder below that cannot be read is recorded in `wanted`."""
        return images_below([(path, key)], wanted)

    def read(self, ref: ImageRef, max_bytes: int) -> bytes:
        """The bytes of one file, as long as it is now."""
        with opened(ref) as (descriptor, info):
            return read_range(descriptor, 0, info.st_size, max_bytes=max_bytes)


class Walk:
    """Enters folders and all folders below them, each once.

    Real folders come first and symlinked ones after them, so that there is no loop, and the keys are the same on every run.

    Attributes:
        entered: paths of the folders entered so far.
    """

    def __init__(self, wanted: FileFilter) -> None:
        self._wanted = wanted
        self.entered: list[bytes] = []
        self._seen: set[tuple[int, int]] = set()
        self._links: list[PathAndKey] = []  # folders behind symlinks, which wait for the real ones

    def files(self, starts: Iterable[PathAndKey]) -> Iterator[tuple[os.DirEntry[bytes], bytes]]:
        """Every file below the given folders, with its key."""
        waiting: list[PathAndKey] = []
        for start in starts:
            (self._links if os.path.islink(start[0]) else waiting).append(start)
        while waiting or self._links:
            for start in sorted(waiting):
                yield from self._files_below(start)
            waiting, self._links = self._links, []

    def _files_below(self, start: PathAndKey) -> Iterator[tuple[os.DirEntry[bytes], bytes]]:
        stack = [start]
        while stack:
            folder, key = stack.pop()
            prefix = start_of_keys(key)
            try:
                info = os.stat(folder)
                if (info.st_dev, info.st_ino) in self._seen:
                    continue
                self._seen.add((info.st_dev, info.st_ino))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if not _is_folder(entry):
                            yield entry, prefix + entry.name
                        elif is_hidden(entry.name):
                            self._wanted.skipped["hidden folder"] += 1
                        else:
                            (self._links if entry.is_symlink() else stack).append((entry.path, prefix + entry.name))
            except OSError as error:
                self._wanted.note_unread(f"folder `{printable(folder)}` ({error.strerror})", prefix)
            self.entered.append(folder)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that may not be read
        return False


def images_below(folders: Iterable[PathAndKey], wanted: FileFilter) -> Iterator[Entry]:
    """The files of folders and of all folders below them that are taken as images.

    Several folders are entered together, so that a real folder below one of them wins over a link to it below another.
    """
    for file, key in Walk(wanted).files(folders):
        if wanted.takes(file.name) and (entry := file_entry(file.path, key, file.stat, wanted)):
            yield entry


def file_entry(path: bytes, key: bytes, stat_of_file: Callable[[], os.stat_result], wanted: FileFilter) -> Entry | None:
    """A file whose name is wanted as an entry. None, and a record in `wanted`, if it is not a regular file that can be read."""
    try:
        info = stat_of_file()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            wanted.skipped["broken link or vanished file"] += 1
        else:
            wanted.note_unread(f"`{printable(path)}` ({error.strerror})", key)
        return None
    return Entry(key, info.st_size, info.st_mtime_ns) if wanted.takes_file(info) else None
