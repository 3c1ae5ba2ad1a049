"""Which crops of an image are cut and how each is changed: random numbers only, no pixels.

Every number of an image comes from one generator that the caller seeds with the image's place in the run, so crops depend on neither
the number of workers nor the number of processes.

Source: DINOv2 (arXiv 2304.07193) App. B; official dinov2/data/augmentations.py. Probabilities and ranges are those of that file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_extract.finetune.config import CropConfig

Floats = NDArray[np.float32]

JITTER_PROBABILITY = 0.8
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1  # factors are 1 - x .. 1 + x; hue shifts -x .. x of the circle
GRAYSCALE_PROBABILITY = 0.2
SOLARIZE_PROBABILITY = 0.2  # second global crop only
BLUR_SIGMA = (0.1, 2.0)  # pixels of the crop
BLUR_PROBABILITY = {"nominal": (1.0, 0.1, 0.5), "released": (0.0, 0.9, 0.5), "off": (0.0, 0.0, 0.0)}  # first global crop, second, local
ASPECT = (3 / 4, 4 / 3)
TRIES = 10
ORDERS = np.array(list(permutations(range(4))), dtype=np.int64)  # (24, 4): the order in which the four jitters are applied


@dataclass(frozen=True)
class CropParams:
    """What happens to each of some crops; every array has one entry for each crop, of one image (n,) or of a batch (B, n).

    Args:
        box: (..., 4) float32, top, left, height, width as shares of the image's height and width.
        flip: bool, mirrored left to right.
        jitter: (..., 4) float32, factors of brightness, contrast and saturation, and shift of hue; 1, 1, 1, 0 leaves a crop unchanged.
        order: (..., 4) int64, the order of the four.
        grayscale: bool.
        sigma: float32, of the blur, in pixels of the crop; 0 for none.
        solarize: bool, values above one half are inverted.
    """

    box: Floats
    flip: NDArray[np.bool_]
    jitter: Floats
    order: NDArray[np.int64]
    grayscale: NDArray[np.bool_]
    sigma: Floats
    solarize: NDArray[np.bool_]

    @classmethod
    def stack(cls, images: list[CropParams]) -> CropParams:
        """The parameters of a batch, (B, n, ...)."""
        return cls(*(np.stack([getattr(image, entry.name) for image in images]) for entry in fields(cls)))

    def crop_by_crop(self) -> CropParams:
        """A batch's parameters (B, n, ...) in the order in which its crops lie, (n * B, ...)."""
        arrays: list[NDArray[Any]] = [getattr(self, entry.name) for entry in fields(self)]
        return CropParams(*(np.moveaxis(array, 1, 0).reshape(-1, *array.shape[2:]) for array in arrays))


def draw_crops(rng: np.random.Generator, height: int, width: int, config: CropConfig) -> tuple[CropParams, CropParams]:
    """The two global crops and the local crops of one image.

    Args:
        rng: seeded for this image and epoch.
        height: of the image as it was stored, in pixels.
        width: of the image as it was stored, in pixels.
        config: scales, number of local crops, and which blur.
    """
    first, second, local = BLUR_PROBABILITY[config.blur]
    global_params = _draw(
        rng, height, width, config.global_crops_scale, blur=np.array([first, second]), solarize=np.array([0, SOLARIZE_PROBABILITY])
    )
    number = config.local_crops_number
    return global_params, _draw(rng, height, width, config.local_crops_scale, blur=np.full(number, local), solarize=np.zeros(number))


def _draw(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    *,
    blur: NDArray[np.float64],
    solarize: NDArray[np.float64],
) -> CropParams:
    count = len(blur)
    factors = rng.uniform(-1, 1, (count, 4)) * (BRIGHTNESS, CONTRAST, SATURATION, HUE) + (1, 1, 1, 0)
    is_jittered = rng.random(count) < JITTER_PROBABILITY
    return CropParams(
        box=_draw_boxes(rng, count, height, width, scale),
        flip=rng.random(count) < 0.5,
        jitter=np.where(is_jittered[:, None], factors, (1, 1, 1, 0)).astype(np.float32),
        order=ORDERS[rng.integers(0, len(ORDERS), count)],
        grayscale=rng.random(count) < GRAYSCALE_PROBABILITY,
        sigma=np.where(rng.random(count) < blur, rng.uniform(*BLUR_SIGMA, count), 0).astype(np.float32),
        solarize=rng.random(count) < solarize,
    )


def _draw_boxes(rng: np.random.Generator, count: int, height: int, width: int, scale: tuple[float, float]) -> Floats:
    """Boxes (count, 4) of whole pixels: area uniform in `scale`, aspect ratio log-uniform, the first of ten tries that fits.

    Source: Szegedy et al. 2015 (arXiv 1409.4842) Sec. 6; torchvision RandomResizedCrop, whose rule for images too narrow for any try
    is kept: the largest centred box of an allowed aspect ratio.
    """
    area = height * width * rng.uniform(*scale, (count, TRIES))
    aspect = np.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), (count, TRIES)))
    box_w, box_h = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (box_w > 0) & (box_w <= width) & (box_h > 0) & (box_h <= height)
    pick = (np.arange(count), fits.argmax(axis=1))
    found = fits.any(axis=1)
    centred_h, centred_w = min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))
    box_h, box_w = np.where(found, box_h[pick], centred_h), np.where(found, box_w[pick], centred_w)
    place = rng.random((2, count))
    top = np.where(found, np.floor(place[0] * (height - box_h + 1)), (height - box_h) // 2)
    left = np.where(found, np.floor(place[1] * (width - box_w + 1)), (width - box_w) // 2)
    return np.stack([top / height, left / width, box_h / height, box_w / width], axis=1).astype(np.float32)
