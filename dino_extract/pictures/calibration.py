"""What each threshold of `dedup` finds, measured on altered copies of the images of a file.

The copies are altered as photographs are when people pass them on: cropped, compressed, resized, mirrored, recoloured.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from dino_extract.analysis.dedup import Calibration
from dino_extract.analysis.dedup import calibrate as calibrate_vectors
from dino_extract.analysis.vectors.stored import StoreSource, opened, stored_vectors
from dino_extract.embedding.job import prepare_again
from dino_extract.errors import ConfigError, StoreError
from dino_extract.images.preprocess import Preprocess, preprocess_image
from dino_extract.options import Limits, checked
from dino_extract.pictures.source_images import source_image
from dino_extract.store import Store

_JPEG_SIDE = 65_500  # pixels, the most that libjpeg writes


def _crop(image: Image.Image) -> Image.Image:
    """The middle 80 % of each side."""
    width, height = image.size
    return image.crop((width // 10, height // 10, width - width // 10, height - height // 10))


def _reencode(image: Image.Image) -> Image.Image:
    """JPEG of quality 30, which shows its blocks."""
    stream = io.BytesIO()
    if max(image.size) > _JPEG_SIDE:
        image = image.copy()
        image.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
    image.save(stream, "JPEG", quality=30)
    return Image.open(stream).convert("RGB")


def _shrink(image: Image.Image) -> Image.Image:
    """Half the size on each side."""
    return image.resize((max(image.width // 2, 1), max(image.height // 2, 1)), Image.Resampling.BICUBIC)


def _recolour(image: Image.Image) -> Image.Image:
    """Brighter by 20 %, with 30 % less colour."""
    return ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.2)).enhance(0.7)


ALTERATIONS: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {  # kind -> its description, and the change itself
    "crop": ("the middle 80 % of each side", _crop),
    "re-encode": ("JPEG of quality 30", _reencode),
    "resize": ("half as wide and high", _shrink),
    "flip": ("mirrored", ImageOps.mirror),
    "colour": ("20 % brighter, 30 % less colour", _recolour),
}


def calibrate(
    store: StoreSource,
    images: int = 200,
    *,
    dataset: str = "features",
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> list[Calibration]:
    """What each threshold of `dedup` finds, measured on altered copies of images of a file.

    Args:
        store: a file with CLS tokens whose images are still where they were, or its path.
        images: how many images are altered and embedded, drawn at random.
        dataset: `features`, because copies have CLS embeddings alone.
        seed: of the random choice.
        log: called with lines that describe the measurement.

    Raises:
        StoreError: none of the images is where and as it was, or the weights have changed since.
        ConfigError: another dataset, fewer than one image, or a file with a single image.
    """
    log = log or (lambda line: None)
    images = checked("images", int, images, Limits(least=1))
    if dataset != "features":
        raise ConfigError(f"altered copies are compared by `features`, not by `{dataset}`")
    with opened(store) as found:
        vectors = stored_vectors(found, dataset)
        rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:images])
        log(f"{len(rows):,} of {len(vectors):,} images, a copy of each altered in {len(ALTERATIONS)} ways and embedded:")
        for kind, (words, _) in ALTERATIONS.items():
            log(f"  {kind:9}  {words}")
        unchanged, copies = altered_vectors(found, rows)
        if len(unchanged) < len(rows):
            log(f"note: {len(rows) - len(unchanged):,} of them are left out, because they were deleted or changed since")
        return calibrate_vectors(vectors, unchanged, copies)


def altered_vectors(store: Store, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """The embeddings of altered copies of images of a store, made exactly as the store was.

    Args:
        store: a file with CLS tokens whose images are still where they were.
        rows: (S,) int64 of embedded images, ascending.

    Returns:
        The rows whose images have not changed, and for each kind of change the CLS tokens (S, D) of their copies.

    Raises:
        StoreError: none of the images is where and as it was, or the weights have changed since.
        ImageError: an image cannot be read any more.
    """
    job = prepare_again(store, rows.tolist(), tokens="cls", layers=None)
    if job is None:
        message = f"none of the {len(rows):,} images drawn is still at `{store.attrs['root']}` with its size and time"
        raise StoreError(message, hint="put the images back, or give a file whose images are still there")
    kept, paths = set(job.manifest.keys), store.paths
    rows = np.array([row for row in rows.tolist() if os.fsencode(paths[row]) in kept], np.int64)
    engine = job.recipe.engine(release=True)
    vectors: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in ALTERATIONS}
    for first in range(0, len(rows), job.settings.batch_size):
        batch = rows[first : first + job.settings.batch_size].tolist()
        copies = [_altered_pixels(source_image(store, paths[row]), job.settings.preprocess) for row in batch]
        for kind in ALTERATIONS:
            vectors[kind].append(engine(np.stack([each[kind] for each in copies]))["features"].astype(np.float32))
    return rows, {kind: np.concatenate(blocks) for kind, blocks in vectors.items()}


def _altered_pixels(image: Image.Image, preprocess: Preprocess) -> dict[str, NDArray[np.uint8]]:
    """The (h, w, 3) uint8 input of the model for each altered copy of an image."""
    return {kind: np.asarray(preprocess_image(alter(image), preprocess)) for kind, (_, alter) in ALTERATIONS.items()}
