"""Whether what somebody named as a source can be one, judged before anything long begins; needs the standard library alone."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence

from dino_extract.errors import SourceError
from dino_extract.images.suffixes import NOT_IMAGE_SUFFIXES, UNREADABLE_ARCHIVES
from dino_extract.names import printable, quoted

LISTS = {b"-": b"\n", b"-0": b"\0"}  # sources that are lists of paths on stdin, and what ends each path

_TABLES = frozenset((".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xls", ".xlsx", ".ods"))
_TEXTS = frozenset((".txt", ".lst", ".list", ".md", ".log"))
_FILMS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv"))
_ARCHIVES = frozenset((".tar", ".zip", *map(bytes.decode, UNREADABLE_ARCHIVES)))  # `find_images` reads these, or says why it does not

# How the files of an address get to this machine.
_DOWNLOADS = {
    "s3": "aws s3 sync {address} images/",
    "gs": "gcloud storage rsync --recursive {address} images/",
    "hf": "hf download --repo-type dataset NAME --local-dir images/",
    "http": "curl --remote-name {address}",
    "https": "curl --remote-name {address}",
}


def require_usable(sources: Sequence[str | bytes], suffixes: Sequence[str] = ()) -> None:
    """Refuse a source that is missing, an address, or a file of a kind that is not an image; lists, globs and folders are not looked into.

    Args:
        sources: as for `find_images`.
        suffixes: of files that are taken whatever their kind.

    Raises:
        SourceError: such a source.
    """
    for source in map(os.fsencode, sources):
        if source in LISTS or (glob.has_magic(source) and not os.path.lexists(source)):
            continue
        if (address := re.match(rb"([a-z][a-z0-9+.-]+)://", source)) and not os.path.lexists(source):
            raise _address_error(source, address[1].decode())
        try:
            os.stat(source)
        except OSError as error:
            raise SourceError(f"`{printable(source)}` cannot be read: {error.strerror}") from error
        if os.path.isfile(source):
            _require_image(source, suffixes)


def _require_image(source: bytes, suffixes: Sequence[str]) -> None:
    stem, suffix = os.path.splitext(os.fsdecode(source))
    is_named = suffix.lstrip(".").lower() in {each.lstrip(".").lower() for each in suffixes}
    suffix = suffix.lower()
    if is_named or suffix in _ARCHIVES or suffix not in NOT_IMAGE_SUFFIXES | _TEXTS:
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
