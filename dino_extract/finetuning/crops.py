"""Which crops of an image are cut and how each is changed: random numbers only, no pixels.

Every number of an image comes from one generator that the caller seeds with the image's place in the run, so crops depend on neither
the number of workers nor the number of processes. Each crop takes the same count of numbers, which are turned into parameters for all
images of a batch together: one after the other they would hold up the thread that drives a GPU.

Dimension key: B images in the batch, n crops of each, U random numbers of one crop, T tries for its box.

Source: DINOv2 (arXiv 2304.07193) App. B; official dinov2/data/augmentations.py. Probabilities and ranges are those of that file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_extract.finetuning.config import CropConfig

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

JITTER_PROBABILITY = 0.8
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1  # factors are 1 - x .. 1 + x; hue shifts -x .. x of the circle
GRAYSCALE_PROBABILITY = 0.2
SOLARIZE_PROBABILITY = 0.2  # second global crop only
BLUR_SIGMA = (0.1, 2.0)  # pixels of the crop
BLUR_PROBABILITY = {"nominal": (1.0, 0.1, 0.5), "released": (0.0, 0.9, 0.5), "off": (0.0, 0.0, 0.0)}  # first global crop, second, local
ASPECT = (3 / 4, 4 / 3)
TRIES = 10
NUMBERS = 2 * TRIES + 13  # U: two for each try, and those that `_params` names
ORDERS = np.array(list(permutations(range(4))), dtype=np.int64)  # (24, 4): the order in which the four jitters are applied


@dataclass(frozen=True)
class CropParams:
    """What happens to each of some crops; every array has one entry for each crop of a batch, (B, n) or crop by crop (n * B,).

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

    def crop_by_crop(self) -> CropParams:
        """The parameters in the order in which the crops of a batch lie, (n * B, ...)."""
        arrays: list[NDArray[Any]] = [getattr(self, entry.name) for entry in fields(self)]
        return CropParams(*(np.moveaxis(array, 1, 0).reshape(-1, *array.shape[2:]) for array in arrays))


def draw_crops(rngs: Sequence[np.random.Generator], sizes: NDArray[np.int32], config: CropConfig) -> tuple[CropParams, CropParams]:
    """The two global crops and the local crops of each image.

    Args:
        rngs: one for each image, seeded for it and the epoch.
        sizes: (B, 2) heights and widths of the images as they were stored, in pixels.
        config: scales, number of local crops, and which blur.
    """
    first, second, local = BLUR_PROBABILITY[config.blur]
    number = config.local_crops_number
    numbers_BnU = np.stack([rng.random((2 + number, NUMBERS)) for rng in rngs])
    global_blur, global_solarize = np.array([first, second]), np.array([0, SOLARIZE_PROBABILITY])
    return (
        _params(numbers_BnU[:, :2], sizes, config.global_crops_scale, blur=global_blur, solarize=global_solarize),
        _params(numbers_BnU[:, 2:], sizes, config.local_crops_scale, blur=np.full(number, local), solarize=np.zeros(number)),
    )


def _params(
    numbers_BnU: Doubles, sizes_B2: NDArray[np.int32], scale: tuple[float, float], *, blur: Doubles, solarize: Doubles
) -> CropParams:
    """Parameters made of numbers that are uniform in 0..1; the probabilities of blur and solarizing are (n,)."""
    tries, rest = numbers_BnU[..., : 2 * TRIES], np.moveaxis(numbers_BnU[..., 2 * TRIES :], -1, 0)
    top, left, flip, is_jittered, order, grayscale, is_blurred, sigma, is_solarized = rest[4:]
    factors = (2 * np.moveaxis(rest[:4], 0, -1) - 1) * (BRIGHTNESS, CONTRAST, SATURATION, HUE) + (1, 1, 1, 0)
    return CropParams(
        box=_boxes(tries, top, left, sizes_B2, scale),
        flip=flip < 0.5,
        jitter=np.where((is_jittered < JITTER_PROBABILITY)[..., None], factors, (1, 1, 1, 0)).astype(np.float32),
        order=ORDERS[(order * len(ORDERS)).astype(np.int64)],
        grayscale=grayscale < GRAYSCALE_PROBABILITY,
        sigma=np.where(is_blurred < blur, _between(*BLUR_SIGMA, sigma), 0).astype(np.float32),
        solarize=is_solarized < solarize,
    )


def _boxes(tries: Doubles, top: Doubles, left: Doubles, sizes_B2: NDArray[np.int32], scale: tuple[float, float]) -> Floats:
    """Boxes (B, n, 4) of whole pixels: area uniform in `scale`, aspect ratio log-uniform, the first of ten tries that fits.

    Args:
        tries: (B, n, 2 * T) numbers in 0..1, for the areas and for the aspect ratios.
        top: (B, n) number in 0..1, for the place of the box.
        left: likewise.
        sizes_B2: heights and widths of the images.
        scale: of the area.

    Source: Szegedy et al. 2015 (arXiv 1409.4842) Sec. 6; torchvision RandomResizedCrop, whose rule for images too narrow for any try
    is kept: the largest centred box of an allowed aspect ratio.
    """
    height, width = sizes_B2.astype(np.float64)[:, :, None].swapaxes(0, 1)  # (B, 1) each
    area = (height * width)[..., None] * _between(*scale, tries[..., :TRIES])
    aspect = np.exp(_between(math.log(ASPECT[0]), math.log(ASPECT[1]), tries[..., TRIES:]))
    box_w, box_h = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (box_w > 0) & (box_w <= width[..., None]) & (box_h > 0) & (box_h <= height[..., None])
    pick, found = fits.argmax(axis=-1)[..., None], fits.any(axis=-1)
    centred_h, centred_w = np.minimum(height, np.round(width / ASPECT[0])), np.minimum(width, np.round(height * ASPECT[1]))
    box_h = np.where(found, np.take_along_axis(box_h, pick, -1)[..., 0], centred_h)
    box_w = np.where(found, np.take_along_axis(box_w, pick, -1)[..., 0], centred_w)
    top = np.where(found, np.floor(top * (height - box_h + 1)), (height - box_h) // 2)
    left = np.where(found, np.floor(left * (width - box_w + 1)), (width - box_w) // 2)
    return np.stack([top / height, left / width, box_h / height, box_w / width], axis=-1).astype(np.float32)


def _between(low: float, high: float, numbers: Doubles) -> Doubles:
    return low + (high - low) * numbers
