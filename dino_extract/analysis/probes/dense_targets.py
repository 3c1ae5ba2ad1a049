"""The targets of a dense probe: a class or a depth for every pixel that the model saw."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dino_extract.errors import ConfigError, SourceError
from dino_extract.images.preprocess import Preprocess

Task = Literal["segmentation", "depth"]

IGNORED = 255  # class of pixels that are left out of training and tests, as in VOC and ADE20K masks
SUFFIXES = (".png", ".npy", ".tif", ".tiff", ".bmp")
_ASPECT_TOLERANCE = 0.02


class DenseTargets:
    """The target images of a folder, found by the paths of the images: `cats/1.jpg` has `cats/1.png` or `cats/1.npy`.

    Args:
        folder: folder of the targets.
        task: segmentation: one class number per pixel. depth: one length per pixel; 0, negative and infinite values are unknown.
        attrs: root attributes of the store, with the part of each image that the model saw.
        depth_scale: depths in the files are divided by this number (1000 for millimetres, 256 for KITTI).

    Raises:
        SourceError: there is no such folder.
        ConfigError: the images of the store keep their own aspect ratio.
    """

    def __init__(self, folder: str | os.PathLike[str], task: Task, attrs: Mapping[str, Any], *, depth_scale: float = 1.0) -> None:
        self.folder, self.task, self.depth_scale = os.fspath(folder), task, depth_scale
        if not os.path.isdir(self.folder):
            raise SourceError(f"`{self.folder}` is not a folder of target images")
        self.preprocess = Preprocess.from_record(json.loads(str(attrs["preprocessing"])))
        if self.preprocess.output_shape is None:
            raise ConfigError("a dense probe needs images of one size, these were embedded with `preprocess=native`")
        if depth_scale <= 0:
            raise ConfigError(f"`depth_scale` must be above 0, got {depth_scale}")

    def path_of(self, key: str) -> str | None:
        """The target image of an image, or None."""
        stem = os.path.join(self.folder, os.path.splitext(key)[0])
        return next((stem + suffix for suffix in SUFFIXES if os.path.isfile(stem + suffix)), None)

    def read(self, key: str, image_size: tuple[int, int]) -> NDArray[Any]:
        """(height, width) int64 classes or finite float32 depths of the pixels that the model saw.

        Args:
            key: path of the image.
            image_size: (height, width) of the upright image. The target may have another resolution, but the same aspect ratio.

        Raises:
            SourceError: the target is missing or unreadable, in colour, has fractions instead of classes, or another aspect ratio.
        """
        path = self.path_of(key)
        if path is None:
            raise SourceError(f"`{key}` has no target image in `{self.folder}`")
        values = _read_values(path)
        height, width = values.shape
        if abs(height / width / (image_size[0] / image_size[1]) - 1) > _ASPECT_TOLERANCE:
            raise SourceError(
                f"target `{path}` is {height} x {width} pixels, its image {image_size[0]} x {image_size[1]}: not the same shape"
            )
        if self.task == "segmentation":
            if values.dtype.kind == "f" and not (values == np.floor(values)).all():  # NaN is not equal to its floor either
                raise SourceError(f"mask `{path}` must have class numbers, got fractions", hint="`--task depth` is for depths")
            return self._as_seen(values.astype(np.int64), image_size, IGNORED)
        depth = values.astype(np.float32) / self.depth_scale
        return self._as_seen(np.where(np.isfinite(depth), depth, np.float32(0)), image_size, 0.0)  # the sky often has an infinite depth

    def _as_seen(self, values: NDArray[Any], image_size: tuple[int, int], fill: float) -> NDArray[Any]:
        """Resize, crop or pad the target like the image, by nearest neighbours, because classes cannot be mixed."""
        place = self.preprocess.placement(*image_size)
        y, x = np.arange(self.preprocess.height) + place.top, np.arange(self.preprocess.width) + place.left  # in the resized image
        lines = ((y + 0.5) * values.shape[0] / place.height).astype(np.int64).clip(0, values.shape[0] - 1)
        columns = ((x + 0.5) * values.shape[1] / place.width).astype(np.int64).clip(0, values.shape[1] - 1)
        is_inside = np.logical_and.outer((y >= 0) & (y < place.height), (x >= 0) & (x < place.width))
        seen: NDArray[Any] = np.where(is_inside, values[lines][:, columns], values.dtype.type(fill))
        return seen


def _read_values(path: str) -> NDArray[Any]:
    try:
        values = np.load(path, allow_pickle=False) if path.endswith(".npy") else np.asarray(Image.open(path))
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise SourceError(f"target `{path}` cannot be read: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise SourceError(f"target `{path}` must have one number per pixel, got shape {values.shape} of {values.dtype}")
    return values
