"""A model held ready for images in memory, which `embed` would make the same embeddings of: for notebooks, servers and queries."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_extract.config import EmbedConfig
from dino_extract.embedding.recipe import MadeWith, recipe_like, recipe_of
from dino_extract.engine import choose_batch_size
from dino_extract.errors import ConfigError, DecodeError
from dino_extract.images.containers import ImageError, ImageRef
from dino_extract.images.pixels import pixels_of
from dino_extract.images.reading import read_image_bytes
from dino_extract.names import printable
from dino_extract.store import RowDataset, open_store

AnyImage = Image.Image | NDArray[np.uint8] | str | os.PathLike[str] | bytes

EXPECTED_IMAGES = 10_000  # enough for full batches on a GPU, too few for compiling unless that is asked for
_OF_RUNS = ("resize", "decode", "workers", "decode_timeout_s", "shard")  # options that say how `embed` goes through many files


class Encoder:
    """A model held ready: images in, embeddings out, the same as `embed` writes, to rounding.

    For many files `embed` is the better way: it decodes them side by side, away from this process, and survives the bad ones.
    May be called from several threads; they wait for each other.

    Args:
        model: name from `dino-extract weights list`, or `timm/NAME`; as `model` of `embed`.
        like: a file of `embed`, by its path or opened: whatever it was made with, so that embeddings can be compared with its own.
        options: fields of `EmbedConfig`, such as `weights`, `tokens="cls,patch"` or `size`; with `like` those that differ from the file.

    Raises:
        ConfigError: an option that does not fit, or that only `embed` has a use for; a model's name beside `like`.
        StoreError: with `like`, the weights found now are not those the file was made with.
        WeightsError: the model cannot be had.
    """

    def __init__(self, model: str | None = None, *, like: MadeWith | str | os.PathLike[str] | None = None, **options: Any) -> None:
        if useless := [name for name in _OF_RUNS if name in options]:
            raise ConfigError(f"an Encoder has no use for `{useless[0]}`", hint="`embed` goes through many files with it")
        if like is None:
            self._recipe = recipe_of(EmbedConfig(model=model, **options), EXPECTED_IMAGES)
        elif model is not None:
            raise ConfigError("both a model and a file to be like are given", hint="leave one out")
        else:
            with open_store(like) if isinstance(like, (str, os.PathLike)) else nullcontext(like) as store:
                self._recipe = recipe_like(store, EXPECTED_IMAGES, **options)
        if len(self._recipe.devices) > 1:
            raise ConfigError(
                f"an Encoder runs on one device, got `{self._recipe.config.device}`", hint="make one for each, or `embed` files"
            )
        self._engine = self._recipe.engine(release=True)
        self._lock = Lock()  # Pillow's limits are those of the process, and the engine's batch changes

    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> dict[str, Any]:
        """Token arrays by the dataset names of the file, each (n, ...) in storage dtype, in the order of the images.

        Args:
            images: one or several of: a Pillow image; an array (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey, uint8, 0..255;
                the path of a file; the bytes of one. An array (n, H, W, 3) is n images.

        Returns:
            `features` (n, D) for CLS tokens, `patch_features` (n, h, w, D), `register_features` (n, R, D), `mean_features` (n, D), and
            `layers/K/...`; with `preprocess="native"` patch tokens are a list of (h, w, D), as each image has its own grid.

        Raises:
            DecodeError: one of them cannot be read; the message says which.
            ConfigError: one of them is nothing of all this.
        """
        with self._lock:
            parts = list(self._encode(_several(images)))
        return {dataset.name: _joined([part[dataset.name] for part in parts], dataset) for dataset in self._recipe.datasets()}

    def _encode(self, images: Sequence[AnyImage]) -> Iterator[dict[str, NDArray[Any]]]:
        recipe = self._recipe
        if recipe.device.type == "cpu" and not recipe.config.batch and recipe.preprocess.policy != "native":
            size = recipe.preprocess.height, recipe.preprocess.width
            self._engine.fit(choose_batch_size(recipe.model.module, size, recipe.device, len(images)))  # padding costs a CPU much
        step = self._engine.batch_size
        for start in range(0, len(images), step):
            part = images[start : start + step]
            yield self._engine(np.stack([self._pixels(image, start + number) for number, image in enumerate(part)]))

    def _pixels(self, image: AnyImage, number: int) -> NDArray[np.uint8]:
        """What the model sees of one image, (h, w, 3) uint8 RGB."""
        options = self._recipe.preprocess
        name = f"image {number}" + (f", `{printable(os.fsencode(image))}`," if isinstance(image, (str, os.PathLike)) else "")
        try:
            if isinstance(image, np.ndarray):
                image = _from_array(image, number)
            if isinstance(image, (str, os.PathLike)):
                path = os.fsencode(image)
                image = read_image_bytes(ImageRef(path, path), max_bytes=options.max_bytes)
            if not isinstance(image, (bytes, Image.Image)):
                raise _unknown(number, type(image).__name__)
            return pixels_of(image, options)
        except ImageError as error:
            raise DecodeError(f"{name} cannot be used: {error.message}") from error


def _several(images: AnyImage | Sequence[AnyImage]) -> Sequence[AnyImage]:
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim > 3 else [images]
    return list(images)


def _from_array(array: NDArray[Any], number: int) -> Image.Image:
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_picture or 0 in array.shape:
        raise _unknown(number, f"an array {array.shape} of {array.dtype}")
    return Image.fromarray(array)


def _unknown(number: int, what: str) -> ConfigError:
    return ConfigError(
        f"image {number} is {what}, expected a Pillow image, a path, the bytes of a file, or an array (H, W, 3) of uint8",
        hint="pixels are RGB from 0 to 255, not normalised",
    )


def _joined(parts: Sequence[NDArray[Any]], dataset: RowDataset) -> Any:
    if dataset.is_ragged:
        return [row for part in parts for row in part]
    return np.concatenate(parts) if parts else np.empty((0, *dataset.shape), dataset.numpy_dtype)
