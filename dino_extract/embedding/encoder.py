"""A model held ready for images in memory: for notebooks, servers and queries. It gives the embeddings that `embed` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_extract.config import EmbedConfig
from dino_extract.embedding.recipe import HasRecord, recipe_like, recipe_of
from dino_extract.engine import choose_batch_size
from dino_extract.errors import ConfigError, DecodeError
from dino_extract.images.containers import ImageError, ImageRef
from dino_extract.images.pixels import pixels_of
from dino_extract.images.reading import read_image_bytes
from dino_extract.names import counted, printable
from dino_extract.results import Result
from dino_extract.status import Status
from dino_extract.store import RowDataset, open_store

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dino_extract.config import EncoderOptions

AnyImage = Image.Image | NDArray[np.uint8] | str | os.PathLike[str] | bytes

EXPECTED_IMAGES = 10_000  # enough for full batches on a GPU, too few for compiling unless that is asked for
_ONLY_FOR_EMBED = ("resize", "decode", "workers", "decode_timeout_s", "shard")  # options about the way through many files


@dataclass(frozen=True, repr=False)
class Encoded(Result):
    """The result of `Encoder.encode`.

    Args:
        arrays: token arrays by dataset name, (n, ...) each, in storage dtype. Rows of images that failed are NaN; in a list of patch
            tokens they are empty.
        status: (n,) uint8, a `Status` for each image; 1 is OK.
        errors: the reason for each image that failed; empty text for the others.
    """

    arrays: dict[str, Any]
    status: NDArray[np.uint8]
    errors: list[str]

    def summary(self) -> str:
        """Number of images, and of those that failed."""
        return f"{counted(len(self.status), 'image')}, {int(np.count_nonzero(self.status != Status.OK)):,} failed"


class Encoder:
    """A model held ready: images in, embeddings out, the same as `embed` writes, to rounding.

    Use `embed` for many files: it decodes them in several processes, where a damaged image cannot hurt this one.
    Several threads may call an encoder; they wait for each other.

    Args:
        model: name from `dino-extract weights list`, or `timm/NAME`; as `model` of `embed`.
        like: a file of `embed`, opened or by its path: the encoder uses its model and options, so that embeddings are comparable.
        options: fields of `EmbedConfig`, such as `weights`, `tokens="cls,patch"` or `size`; with `like`, options that differ from the file.

    Raises:
        ConfigError: an option is unknown, does not fit or is of use to `embed` only; or `model` and `like` are both given.
        StoreError: with `like`, the weights found now are not those the file was made with.
        WeightsError: the model cannot be had.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        like: HasRecord | str | os.PathLike[str] | None = None,
        **options: Unpack[EncoderOptions],
    ) -> None:
        if useless := [name for name in _ONLY_FOR_EMBED if name in options]:
            raise ConfigError(f"an Encoder has no use for `{useless[0]}`", hint="`embed` goes through many files with it")
        if like is None:
            self._recipe = recipe_of(EmbedConfig.of({"model": model, **options}), EXPECTED_IMAGES)
        elif model is not None:
            raise ConfigError("`model` and `like` are both given", hint="leave one out")
        else:
            with open_store(like) if isinstance(like, (str, os.PathLike)) else nullcontext(like) as store:
                self._recipe = recipe_like(store, EXPECTED_IMAGES, **options)
        settings = self._recipe.settings
        if len(settings.devices) > 1:
            raise ConfigError(
                f"an Encoder runs on one device, got `{settings.config.device}`", hint="make one for each device, or `embed` files"
            )
        self._datasets = settings.datasets()
        self._engine = self._recipe.engine(release=True)
        self._lock = Lock()  # Pillow's limits are those of the process, and the engine's batch changes

    def __repr__(self) -> str:
        settings = self._recipe.settings
        return f"Encoder({settings.model.name} on {settings.devices[0]}, {', '.join(each.name for each in self._datasets)})"

    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> dict[str, Any]:
        """Token arrays by the dataset names of the file, each (n, ...) in storage dtype, in the order of the images.

        Args:
            images: one or several of: a Pillow image; an array (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey, uint8, 0..255;
                the path of a file; the bytes of a file. An array (n, H, W, 3) is n images.

        Returns:
            `features` (n, D) for CLS tokens, `patch_features` (n, h, w, D), `register_features` (n, R, D), `mean_features` (n, D), and
            `layers/K/...`. With `preprocess="native"` patch tokens are a list of (h, w, D), as each image has its own grid.

        Raises:
            DecodeError: an image cannot be read; the message says which. `encode` returns the others.
            ConfigError: an argument is not an image in one of these forms.
        """
        return self._encode(as_images(images), stops_at_failure=True).arrays

    def encode(self, images: AnyImage | Sequence[AnyImage]) -> Encoded:
        """Token arrays with a status for each image: an image that cannot be read gets NaN and does not stop the others.

        Args:
            images: as for a call.

        Raises:
            ConfigError: an argument is not an image in one of the forms above.
        """
        return self._encode(as_images(images), stops_at_failure=False)

    def _encode(self, images: Sequence[AnyImage], *, stops_at_failure: bool) -> Encoded:
        result = Encoded(
            {dataset.name: _nan_rows(dataset, len(images)) for dataset in self._datasets},
            np.full(len(images), Status.OK, np.uint8),
            [""] * len(images),
        )
        with self._lock:
            self._fit(len(images))
            step = self._engine.batch_size
            for start in range(0, len(images), step):
                pixels: dict[int, NDArray[np.uint8]] = {}
                for number, image in enumerate(images[start : start + step], start):
                    try:
                        pixels[number] = self._pixels(image, number)
                    except ImageError as error:
                        if stops_at_failure:
                            raise DecodeError(f"{_name_of(image, number)} cannot be used: {error.message}") from error
                        result.status[number], result.errors[number] = error.status, error.message
                if pixels:
                    self._embed(pixels, result)
        return result

    def _fit(self, num_images: int) -> None:
        """Choose the batch size for so many images, because padding costs a CPU much."""
        settings = self._recipe.settings
        if settings.device.type == "cpu" and not settings.config.batch and settings.preprocess.policy != "native":
            size = settings.preprocess.height, settings.preprocess.width
            self._engine.fit(choose_batch_size(self._recipe.model.module, size, settings.device, num_images))

    def _embed(self, pixels: dict[int, NDArray[np.uint8]], result: Encoded) -> None:
        """Compute a batch, given by the numbers of its images, and put its rows into the result."""
        numbers = list(pixels)
        for name, rows in self._engine(np.stack(list(pixels.values()))).items():
            target = result.arrays[name]
            if isinstance(target, list):
                (target[numbers[0]],) = rows
            else:
                target[numbers] = rows

    def _pixels(self, image: AnyImage, number: int) -> NDArray[np.uint8]:
        """The pixels (h, w, 3) uint8 RGB that the model sees of one image."""
        options = self._recipe.settings.preprocess
        if isinstance(image, np.ndarray):
            image = _from_array(image, number)
        if isinstance(image, (str, os.PathLike)):
            path = os.fsencode(image)
            image = read_image_bytes(ImageRef(path, path), max_bytes=options.max_bytes)
        if not isinstance(image, (bytes, Image.Image)):
            raise _unknown(number, type(image).__name__)
        return pixels_of(image, options)


def _name_of(image: AnyImage, number: int) -> str:
    return f"image {number}" + (f", `{printable(os.fsencode(image))}`," if isinstance(image, (str, os.PathLike)) else "")


def as_images(images: AnyImage | Sequence[AnyImage]) -> Sequence[AnyImage]:
    """A sequence of images from one or several, in any form that an `Encoder` takes."""
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


def _unknown(number: int, found: str) -> ConfigError:
    return ConfigError(
        f"image {number} is {found}, expected a Pillow image, a path, the bytes of a file, or an array (H, W, 3) of uint8",
        hint="pixels are RGB from 0 to 255, not normalised",
    )


def _nan_rows(dataset: RowDataset, count: int) -> Any:
    if dataset.is_ragged:
        return [np.full((0, 0, *dataset.shape), np.nan, dataset.numpy_dtype) for _ in range(count)]
    return np.full((count, *dataset.shape), np.nan, dataset.numpy_dtype)
