"""Altered copies of photographs, as they come about in the wild: to measure how well duplicates are found."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from dino_extract.embedding.job import prepare_again
from dino_extract.errors import StoreError
from dino_extract.images.preprocess import preprocess_image
from dino_extract.pictures.stored import source_picture
from dino_extract.store import Store

_JPEG_SIDE = 65_500  # pixels, the most that libjpeg writes


def _crop(picture: Image.Image) -> Image.Image:
    """The middle 80 % of each side."""
    width, height = picture.size
    return picture.crop((width // 10, height // 10, width - width // 10, height - height // 10))


def _reencode(picture: Image.Image) -> Image.Image:
    """JPEG of quality 30, which shows its blocks."""
    stream = io.BytesIO()
    if max(picture.size) > _JPEG_SIDE:
        picture = picture.copy()
        picture.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
    picture.save(stream, "JPEG", quality=30)
    return Image.open(stream).convert("RGB")


def _shrink(picture: Image.Image) -> Image.Image:
    """Half the size on each side."""
    return picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)), Image.Resampling.BICUBIC)


def _recolour(picture: Image.Image) -> Image.Image:
    """Brighter by 20 %, with 30 % less colour."""
    return ImageEnhance.Color(ImageEnhance.Brightness(picture).enhance(1.2)).enhance(0.7)


ALTERATIONS: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {  # kind -> what it is, in words, and in pixels
    "crop": ("the middle 80 % of each side", _crop),
    "re-encode": ("JPEG of quality 30", _reencode),
    "resize": ("half as wide and high", _shrink),
    "flip": ("mirrored", ImageOps.mirror),
    "colour": ("20 % brighter, 30 % less colour", _recolour),
}


def altered_vectors(store: Store, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """Altered copies of images of a store, embedded as it was.

    Args:
        store: a file with CLS tokens, whose images are where they were.
        rows: (S,) int64 of embedded images, ascending.

    Returns:
        The rows whose images are still as they were, and for each kind of change the CLS tokens (S, D) of their copies.

    Raises:
        StoreError: none of the images is where and as it was, or the weights found now are not those the file was made with.
        DecodeError: an image cannot be read any more.
    """
    job = prepare_again(store, rows.tolist(), tokens="cls", layers=None)
    if job is None:
        message = f"none of the {len(rows):,} images drawn is still at `{store.attrs['root']}` with its size and time"
        raise StoreError(message, hint="copies can be made of nothing but the images themselves")
    kept, paths = set(job.manifest.keys), store.paths
    rows = np.array([row for row in rows.tolist() if os.fsencode(paths[row]) in kept], np.int64)
    engine = job.engine(release=True)
    vectors: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in ALTERATIONS}
    for first in range(0, len(rows), job.batch_size):
        pixels: dict[str, list[NDArray[np.uint8]]] = {kind: [] for kind in ALTERATIONS}
        for row in rows[first : first + job.batch_size].tolist():
            picture = source_picture(store, paths[row])
            for kind, (_, alter) in ALTERATIONS.items():
                pixels[kind].append(np.asarray(preprocess_image(alter(picture), job.preprocess)))
        for kind, some in pixels.items():
            vectors[kind].append(engine(np.stack(some))["features"].astype(np.float32))
    return rows, {kind: np.concatenate(blocks) for kind, blocks in vectors.items()}
