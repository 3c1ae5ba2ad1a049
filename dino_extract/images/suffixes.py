"""Which files may be images, by name alone."""

from __future__ import annotations

from functools import lru_cache


def _suffixes(text: str) -> tuple[str, ...]:
    return tuple(f".{word}" for word in text.split())


# Files that certainly are not images are left out of a folder. All others, even without a suffix, are tried and get a row, so that an
# image with an odd name is never lost without a trace.
NOT_IMAGE_SUFFIXES = frozenset(
    _suffixes(
        "txt md rst csv tsv json jsonl ndjson xml yaml yml toml ini cfg html htm css log lst srt vtt sha256 md5 "
        "py pyc ipynb sh bat js ts c h cpp hpp java rs go r m pl rb php sql exe dll so dylib o a jar "
        "zip tar gz tgz bz2 tbz xz txz zst 7z rar lz4 whl iso dmg "
        "mp4 mov avi mkv webm mpg mpeg m4v wmv flv mp3 wav flac ogg aac m4a opus "
        "pdf doc docx xls xlsx ppt pptx odt ods odp rtf epub tex bib "
        "npy npz pt pth ckpt safetensors onnx pkl pickle joblib h5 hdf5 hdf parquet arrow feather lmdb mdb tfrecord "
        "rec idx db sqlite sqlite3 bin dat tmp part lock bak "
        # files next to the images of a WebDataset shard
        "cls cls2 class count index inx id caption url text transcript jsn meta pyd ten tb mp msgpack msg cbor"
    )
)
UNREADABLE_ARCHIVES = tuple(map(str.encode, _suffixes("tgz gz tbz bz2 txz xz zst 7z rar lz4")))
JUNK_NAMES = frozenset([b"Thumbs.db", b"desktop.ini", b"__MACOSX"])  # left behind by file managers


def is_hidden(name: bytes) -> bool:
    """Whether a file or folder of this name is hidden."""
    return name.startswith(b".") or name in JUNK_NAMES


def reason_to_skip(name: bytes, suffixes: tuple[str, ...]) -> str | None:
    """Why a file is left out (`hidden`, or its suffix), or None if it is taken.

    Args:
        name: the file's name without its folder.
        suffixes: take exactly these, lower case; empty takes everything that may be an image.
    """
    if is_hidden(name):
        return "hidden"
    dot = name.rfind(b".")
    return _reason_of_suffix(name[dot:] if dot > 0 else b"", suffixes)


@lru_cache(maxsize=1024)  # a folder of a million files has a handful of suffixes
def _reason_of_suffix(raw: bytes, suffixes: tuple[str, ...]) -> str | None:
    suffix = raw.lower().decode("ascii", "replace")
    is_wanted = suffix in suffixes if suffixes else suffix not in NOT_IMAGE_SUFFIXES
    return None if is_wanted else suffix or "no suffix"
