"""From SOURCE arguments to a sorted manifest of images."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from dino_extract.errors import SourceError
from dino_extract.images.columns import Columns
from dino_extract.images.containers import FILE, Entry, FileFilter
from dino_extract.images.manifest import ListedContainer, Manifest
from dino_extract.images.reading import container_at
from dino_extract.images.sources import LISTS, CheckedSource, check_path, check_sources
from dino_extract.images.walking import PathAndKey, Walk, file_entry, images_below
from dino_extract.names import clean_key, printable

AnyPath = str | bytes | os.PathLike[str]
Sources = AnyPath | Iterable[AnyPath]


def find_images(
    sources: Sources,
    *,
    suffixes: str | Sequence[str] = (),
    stdin: BinaryIO | None = None,
    leave_out: AnyPath | None = None,
) -> Manifest:
    """The images of all sources as one sorted manifest.

    Keys are relative to the source if it is one folder or one archive. Otherwise they are the paths as typed, and members of an archive
    follow its path (`shards/000.tar/cat.jpg`). An image that is reached twice is listed once.

    Args:
        sources: folders, files, quoted globs, `.tar` and `.zip` archives, `-` (one path per line on stdin) or `-0` (paths ended by NUL).
        suffixes: take exactly these from folders, globs and archives (`.heic`), instead of everything that may be an image.
        stdin: the binary stream that `-` and `-0` read from.
        leave_out: a file that folders and globs do not give, because the run writes it.

    Raises:
        SourceError: a source is missing, of a kind that is not read, or there is no image at all.
    """
    typed = _typed(sources)
    if not typed:
        raise SourceError("no source given", hint="name a folder of images, for example `dino-extract embed photos/`")
    only = [suffixes] if isinstance(suffixes, str) else suffixes
    checked = check_sources(typed, only)
    wanted = FileFilter(_with_dots(only), leave_out)
    finder = _Finder(wanted, stdin)
    root = finder.add_all(typed, checked)
    if not finder.columns.keys:
        raise _nothing_found(typed, wanted)
    return finder.columns.manifest(root, tuple(source if source in LISTS else _absolute(source) for source in typed), wanted)


def _typed(sources: Sources) -> list[bytes]:
    return [os.fsencode(source) for source in ([sources] if isinstance(sources, (str, bytes, os.PathLike)) else sources)]


def _with_dots(suffixes: Iterable[str]) -> tuple[str, ...]:
    return tuple(suffix.lower() if suffix.startswith(".") else f".{suffix.lower()}" for suffix in suffixes)


class _Finder:
    """Adds the images of all sources to the columns."""

    def __init__(self, wanted: FileFilter, stdin: BinaryIO | None) -> None:
        self._wanted, self._stdin = wanted, stdin
        self.columns = Columns()

    def add_all(self, typed: Sequence[bytes], checked: Sequence[CheckedSource | None]) -> bytes:
        """Add the images of all sources. Returns the folder or archive to which the keys are relative."""
        only = checked[0] if len(checked) == 1 else None
        if only is not None and only.container is not None:
            root = _absolute(only.path)
            self._add(only._replace(path=root), b"")
            return root
        for source, path in zip(typed, checked, strict=True):
            if path is not None:
                self._add(path, clean_key(source))
            elif source in LISTS:
                self._add_list(_read_list(self._stdin, LISTS[source]))
            else:
                self._add_pattern(source)
        root = os.getcwdb()
        self.columns.drop_same_files(root)
        return root

    def _add(self, source: CheckedSource, key: bytes) -> None:
        """Add the images of a path. Their keys begin with `key`."""
        path, container, size, mtime_ns = source
        if container is None:
            self.columns.add(Entry(key, size, mtime_ns))
            return
        entries = container.entries(path, key, self._wanted)
        number = -1
        if container.kind != FILE:
            number = self.columns.add_container(ListedContainer(container.kind, _absolute(path), (size, mtime_ns)))
        for entry in entries:
            self.columns.add(entry, number)

    def _add_list(self, paths: Iterable[bytes]) -> None:
        """Add every path of a list. A path that cannot be used gets a row that will fail, so that one lost file does not end the run."""
        num_listed = num_missing = 0
        for path in paths:
            num_listed += 1
            try:
                self._add(check_path(path), clean_key(path))
            except SourceError:  # reading it will give the reason
                num_missing += not os.path.lexists(path)
                self.columns.add(Entry(clean_key(path), 0, 0))
        if num_listed and num_missing == num_listed:
            raise SourceError(
                f"none of the {num_listed:,} listed paths exists", hint="paths in a list are relative to the working directory"
            )

    def _add_pattern(self, pattern: bytes) -> None:
        matches = sorted(set(self._expand(pattern)))
        if not matches:
            raise SourceError(f"`{printable(pattern)}` matches no file")
        folders: list[PathAndKey] = []
        for match in matches:
            container = container_at(match, _mode_of(match))
            if container is None:
                self._add_matched_file(match)
            elif container.kind == FILE:
                folders.append((match, clean_key(match)))
            else:
                self._add(check_path(match), clean_key(match))
        for entry in images_below(folders, self._wanted):
            self.columns.add(entry)

    def _add_matched_file(self, path: bytes) -> None:
        if self._wanted.takes(os.path.basename(path)):
            entry = file_entry(path, clean_key(path), lambda: os.stat(path), self._wanted)
            if entry is not None:
                self.columns.add(entry)

    def _expand(self, pattern: bytes) -> Iterator[bytes]:
        """The paths that match. `**` is each folder below once, because `glob` would follow a link to a folder above for ever."""
        parts = pattern.split(b"/")
        if b"**" not in parts:
            yield from glob.iglob(pattern)
            return
        place = parts.index(b"**")
        above = b"/".join(parts[:place]) or (b"/" if pattern.startswith(b"/") else b".")
        walk = Walk(self._wanted)
        for _ in walk.files((match, clean_key(match)) for match in glob.iglob(above) if os.path.isdir(match)):
            pass  # only the folders count
        for folder in walk.entered:
            yield from self._expand(os.path.join(glob.escape(folder), *(parts[place + 1 :] or [b"*"])))


def _mode_of(path: bytes) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _read_list(stdin: BinaryIO | None, end: bytes) -> Iterator[bytes]:
    """The paths on stdin, each ended by `end`."""
    if stdin is None:
        raise SourceError(
            "a list of paths on stdin was asked for, but there is no stdin",
            hint="for example `find photos -name '*.jpg' | dino-extract embed -`",
        )
    line_end = b"\r" if end == b"\n" else b""  # of lists that Windows has written
    rest = b""
    while block := stdin.read(1 << 20):
        if end == b"\n" and b"\0" in block:
            raise SourceError("the list on stdin has NUL between its paths, expected one path per line", hint="give `-0`")
        *paths, rest = (rest + block).split(end)
        yield from filter(None, (path.removesuffix(line_end) for path in paths))
    if last := rest.removesuffix(line_end):
        yield last


def _absolute(path: bytes) -> bytes:
    path = clean_key(os.path.join(os.getcwdb(), path))
    return os.path.realpath(path) if b".." in path.split(b"/") else path


def _nothing_found(typed: Sequence[bytes], wanted: FileFilter) -> SourceError:
    what = f"no {', '.join(wanted.suffixes)} file" if wanted.suffixes else "no file that may be an image"
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in wanted.skipped.most_common(3))
    has_archives = any(container_at(os.fsencode(f"archive{reason}"), stat.S_IFREG) for reason in wanted.skipped if reason.startswith("."))
    return SourceError(
        f"`{' '.join(map(printable, typed))}` holds {what}" + (f" (left out: {left_out})" if left_out else ""),
        hint="archives in a folder are not looked into: name them, for example `photos/*.zip`"
        if has_archives
        else "expected folders, images, globs, .tar or .zip archives, or a list of them on stdin",
    )
