"""SHA-256 of files. Needs no torch, so that a download is checked without it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dino_extract.errors import WeightsError

BLOCK_BYTES = 4 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal.

    Raises:
        WeightsError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise WeightsError(f"`{path}` cannot be read: {error.strerror}") from error
    return digest.hexdigest()
