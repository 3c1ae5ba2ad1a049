"""The check of the sources that a user has given, before anything long begins. Needs only the standard library."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Sequence
from typing import NamedTuple

from dino_extract.errors import SourceError
from dino_extract.images.containers import Container, unreadable_source
from dino_extract.images.reading import container_at
from dino_extract.images.suffixes import NOT_IMAGE_SUFFIXES, UNREADABLE_ARCHIVES
from dino_extract.names import printable, quoted

LISTS = {b"-": b"\n", b"-0": b"\0"}  # sources that are lists of paths on stdin, and what ends each path

_TABLES = frozenset((".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xls", ".xlsx", ".ods"))
_TEXTS = frozenset((".txt", ".lst", ".list", ".md", ".log"))
_FILMS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv"))

# Commands that copy the files of an address to this machine.
_DOWNLOADS = {
    "s3": "aws s3 sync {address} images/",
    "gs": "gcloud storage rsync --recursive {address} images/",
    "hf": "hf download --repo-type dataset NAME --local-dir images/",
    "http": "curl --remote-name {address}",
    "https": "curl --remote-name {address}",
}


class CheckedSource(NamedTuple):
    """A path that can be used as a source."""

    path: bytes
    container: Container | None  # None: the file is an image
    size: int
    mtime_ns: int


def check_sources(sources: Sequence[str | bytes], suffixes: Sequence[str] = ()) -> list[CheckedSource | None]:
    """Look up every source once. None for a list or a pattern, which are not looked into; an existing path is never taken for a pattern.

    Args:
        sources: as for `find_images`.
        suffixes: files with these are taken, whatever their kind.

    Raises:
        SourceError: a source is missing, an address, or a file of a kind that is not read.
    """
    checked: list[CheckedSource | None] = []
    for source in map(os.fsencode, sources):
        is_path = source not in LISTS and (os.path.lexists(source) or not glob.has_magic(source))
        checked.append(check_path(source) if is_path else None)
        if (path := checked[-1]) is not None and path.container is None:
            _require_image(source, suffixes)
    return checked


def check_path(path: bytes) -> CheckedSource:
    """Look up one path. A file that is not in a container may be of any kind.

    Raises:
        SourceError: it is missing, an address, must not be read, or is neither a folder nor a file that can be read in place.
    """
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            os.scandir(path).close()  # a forbidden source is an error, a forbidden folder below it is only recorded
    except OSError as error:
        return _not_a_file(path, error)
    container = container_at(path, info.st_mode)
    if container is None and not stat.S_ISREG(info.st_mode):
        raise SourceError(f"`{printable(path)}` is neither a folder nor a regular file")
    if container is None and path.lower().endswith(UNREADABLE_ARCHIVES):
        raise SourceError(
            f"`{printable(path)}` is an archive that cannot be read in place",
            hint="give a `.zip`, a `.tar` without compression, or a folder",
        )
    return CheckedSource(path, container, info.st_size, info.st_mtime_ns)


def _not_a_file(path: bytes, error: OSError) -> CheckedSource:
    if (container := container_at(path, 0)) is not None:
        return CheckedSource(path, container, 0, 0)
    if address := re.match(rb"([a-z][a-z0-9+.-]+)://", path):
        raise _address_error(path, address[1].decode())
    raise unreadable_source(path, error) from error


def _require_image(source: bytes, suffixes: Sequence[str]) -> None:
    stem, suffix = os.path.splitext(os.fsdecode(source))
    is_named = suffix.lstrip(".").lower() in {each.lstrip(".").lower() for each in suffixes}
    suffix = suffix.lower()
    if is_named or suffix not in NOT_IMAGE_SUFFIXES | _TEXTS:
        return
    what, hint = (
        "not an image",
        f"leave it out; a folder or a quoted pattern skips such files, and `--suffix {suffix}` takes them as images",
    )
    if suffix in _FILMS:
        what = "a film, not an image"
        hint = f"take its frames: `mkdir frames; ffmpeg -i {quoted(os.fsdecode(source))} frames/%06d.png`"
    elif suffix in _TABLES | _TEXTS:
        what = f"a {'table' if suffix in _TABLES else 'text file'}, not an image"
        listing = quoted(f"{stem}.txt" if suffix in _TABLES else os.fsdecode(source))
        output = quoted(f"{os.path.basename(stem)}.h5")
        hint = f"a list with a path in each line is read from stdin: `dino-extract embed - -o {output} < {listing}`"
    raise SourceError(f"`{printable(source)}` is {what}", hint=hint)


def _address_error(source: bytes, scheme: str) -> SourceError:
    command = _DOWNLOADS.get(scheme, "").format(address=quoted(os.fsdecode(source)))
    hint = "copy the images to this machine first" + (f", for example with `{command}`" if command else "")
    return SourceError(f"`{printable(source)}` is an address, and images are read from files only", hint=hint)
