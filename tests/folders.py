"""Folders and archives for tests."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

from dino_extract.images.finding import find_images
from dino_extract.images.reading import read_image_bytes


def fill(folder: Path, *names: str | bytes) -> Path:
    """The folder, with files of these names. Each file holds its own name."""
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(os.fsencode(name))
    return folder


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar with these regular members."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_500_000_000
            archive.addfile(info, io.BytesIO(content))
    return path


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip with these regular members, packed by this method."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2017, 7, 14, 2, 40, 0)), content, compress_type=method)
    return path


def keys_and_contents(sources: list[str]) -> dict[bytes, bytes]:
    """The key and the bytes of every image of the sources."""
    manifest = find_images(sources)
    return {manifest[row].key: read_image_bytes(manifest[row]) for row in range(len(manifest))}
