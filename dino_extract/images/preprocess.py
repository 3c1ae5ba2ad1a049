"""From an upright RGB image to the pixels that a model sees: which part, how large, and the record of that in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_extract.config import IMAGENET_MEAN, IMAGENET_STD, MAX_PIXELS, AlphaPolicy, Decode, SizePolicy
from dino_extract.errors import ConfigError
from dino_extract.images.containers import MAX_FILE_BYTES
from dino_extract.options import Limits, checked

RESIZE_OF_CROP = (256, 224)  # the official evaluation resizes the shorter side to 256 and crops 224
EXACT_ASPECT = 16  # longer images are not resized as a whole: the part that is cropped away could fill the memory
EXACT_PIXELS = 2**20  # nor are larger ones: resizing the part that is cropped away would take as long as decoding
MAX_JPEG_PIXELS = 2**25  # of a JPEG that is decoded on the device, where it takes 100 MB
MAX_DEVICE_PIXELS = EXACT_PIXELS  # of an image that is resized on the device: up to 3 MB, and whole batches wait in memory
MAX_ASPECT = 8  # `native`: at most this many times longer than wide, else one scan line would fill the memory with patches


class Placement(NamedTuple):
    """Size of the resized image in pixels, and its pixel that becomes the top left one of the result (negative: outside the image)."""

    height: int
    width: int
    top: int
    left: int


_RULES: dict[SizePolicy, str] = {
    "crop": "shorter side to round(size * 256 / 224), centre crop of size",
    "squash": "resize to size, aspect ratio not kept",
    "pad": "longer side to size, centred on the mean colour",
    "native": "shorter side to size, longer side in proportion, rounded to the patch size, at most 8 times the shorter",
}


@dataclass(frozen=True)
class Preprocess:
    """How every image is prepared for the model.

    The defaults are the official DINOv2 evaluation transform (Pillow, bicubic, shorter side 256, centre crop 224) on upright images.

    Args:
        policy: `crop` takes the centre, `squash` changes the aspect ratio, `pad` adds a border, `native` gives each image its own grid.
        height: pixels, a multiple of `patch`; the shorter side for `native`.
        width: pixels, a multiple of `patch`.
        patch: side of the model's patches in pixels.
        alpha: background of transparent pixels (see `decode_image`).
        fast_decode: decode large JPEGs at 1/2, 1/4 or 1/8 before resizing, never below twice the size: faster, not exact.
        decode: `host` decodes plain JPEGs in the decoder processes, `device` on the device of the model.
        max_pixels: images with more pixels are refused.
        max_bytes: files with more bytes are refused.
        mean: of the RGB channels, 0..1; the model subtracts it.
        std: of the RGB channels, 0..1.

    Raises:
        ConfigError: a size is not a multiple of the patch size, or a limit is below 1.
    """

    policy: SizePolicy = "crop"
    height: int = 224
    width: int = 224
    patch: int = 14
    alpha: AlphaPolicy = "drop"
    fast_decode: bool = False
    decode: Decode = "host"
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_FILE_BYTES
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name, hint, value in (("preprocess", SizePolicy, self.policy), ("alpha", AlphaPolicy, self.alpha)):
            checked(name, hint, value)
        for name, limit in (("max_pixels", self.max_pixels), ("max_bytes", self.max_bytes)):
            checked(name, int, limit, Limits(least=1))
        for side in (self.height, self.width):
            if side < self.patch or side % self.patch:
                below = max(side // self.patch, 1) * self.patch
                raise ConfigError(
                    f"image size {side} is not a multiple of the patch size {self.patch}",
                    hint=f"the nearest sizes are `--size {below}` and `--size {below + self.patch}`",
                )
        if self.policy == "native" and self.height != self.width:
            raise ConfigError(
                f"`size` must be one number for `native`, the shorter side, got `{self.height}x{self.width}`",
                hint=f"for example `--size {self.height}`",
            )

    @property
    def output_shape(self) -> tuple[int, int] | None:
        """(height, width) of the pixels that the model sees. None for `native`, because it depends on the image."""
        return None if self.policy == "native" else (self.height, self.width)

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) patches of every image; None for `native`."""
        return None if self.policy == "native" else (self.height // self.patch, self.width // self.patch)

    @property
    def colour_outside(self) -> tuple[int, int, int]:
        """RGB 0..255 of the border of a padded image. The model sees it as zero."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def as_record(self) -> dict[str, Any]:
        """All options that decide the pixels, as JSON for the file. `from_record` reads it back."""
        options: dict[str, Any] = asdict(self)
        options["mean"], options["std"] = list(self.mean), list(self.std)
        if self.decode == "host":  # keeps the record that files had before there was a choice
            del options["decode"]
        return {**options, "resize": _RULES[self.policy], "interpolation": "bicubic, Pillow", "orientation": "exif applied"}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Preprocess:
        """The preprocessing of the images of a file."""
        options = {"decode": "host", **record}
        options = {field.name: options[field.name] for field in fields(cls)}
        return cls(**{**options, "mean": tuple(options["mean"]), "std": tuple(options["std"])})

    def native_grid(self, height: int, width: int) -> tuple[int, int]:
        """The patch grid (h, w) that `native` gives an image of this upright size in pixels."""
        short, long = sorted((height, width))
        across = self.height // self.patch
        along = max(across, min((2 * self.height * long + self.patch * short) // (2 * self.patch * short), MAX_ASPECT * across))
        return (along, across) if height > width else (across, along)

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this upright size is resized to, before a crop and before padding."""
        if self.policy == "squash":
            return self.height, self.width
        if self.policy == "native":
            h, w = self.native_grid(height, width)
            return h * self.patch, w * self.patch
        if self.policy == "pad":
            scale = min(self.height / height, self.width / width)
            return min(max(round(height * scale), 1), self.height), min(max(round(width * scale), 1), self.width)
        large, small = RESIZE_OF_CROP
        full_height, full_width = round(self.height * large / small), round(self.width * large / small)
        if full_height * width <= full_width * height:  # the width decides; torchvision cuts the other side to int()
            return int(full_width * height / width), full_width
        return full_height, int(full_height * width / height)

    def placement(self, height: int, width: int) -> Placement:
        """How an image of this upright size in pixels is resized, and which part of it the model sees."""
        shape = self.resized_shape(height, width)
        if self.policy == "crop":
            top, left = (round((full - size) / 2.0) for full, size in zip(shape, (self.height, self.width), strict=True))
            return Placement(*shape, top, left)  # half to even, as torchvision's CenterCrop
        if self.policy == "pad":
            return Placement(*shape, -((self.height - shape[0]) // 2), -((self.width - shape[1]) // 2))
        return Placement(*shape, 0, 0)

    def can_resize_later(self, height: int, width: int, *, is_jpeg: bool = False) -> bool:
        """Whether a decoded image of this size is small and compact enough to be resized on the device, with others at once.

        A JPEG that is decoded there may be larger, because only its bytes wait in memory. An image that Pillow resizes down before
        across cannot be resized there, because it would be rounded differently.
        """
        shape = self.resized_shape(height, width)
        is_compact = all(max(sides) <= EXACT_ASPECT * min(sides) for sides in ((height, width), shape))
        is_simple = self.policy != "native" and is_compact and _is_across_first((height, width), shape)
        return is_simple and height * width <= (MAX_JPEG_PIXELS if is_jpeg else MAX_DEVICE_PIXELS)


@dataclass(eq=False)
class Jpeg:
    """A JPEG that is decoded on the device.

    Args:
        content: (n,) uint8, the whole file.
        size: (height, width) of the image in pixels.
        error: why it could not be decoded; the decoder on the device sets it.
    """

    content: NDArray[np.uint8]
    size: tuple[int, int]
    error: str = ""


DeviceImage = NDArray[np.uint8] | Jpeg


@dataclass(frozen=True, eq=False)
class DeviceImages:
    """Images of different sizes, in the order of their rows, that are resized on the device.

    Args:
        images: (H, W, 3) uint8 each, RGB, upright; (0, 0, 3) for a failed image; or JPEGs to decode.
        is_resized: (B,) bool, whether an image is already what the model sees.
        options: how the others are prepared; not `native`.
    """

    images: Sequence[DeviceImage]
    is_resized: NDArray[np.bool_]
    options: Preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> DeviceImages:
        return DeviceImages(self.images[part], self.is_resized[part], self.options)

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image in pixels, before it is resized."""
        return [image.size if isinstance(image, Jpeg) else (image.shape[0], image.shape[1]) for image in self.images]

    def frames(self) -> NDArray[np.int64]:
        """For each image, down and across: its length, the resized length, and the first pixel of the result in it. (B, 2, 3)."""
        frames = np.zeros((len(self), 2, 3), np.int64)
        for frame, (height, width), is_resized in zip(frames, self.sizes(), self.is_resized.tolist(), strict=True):
            if is_resized or not height:
                frame[:, 0] = frame[:, 1] = height, width
            else:
                full_height, full_width, top, left = self.options.placement(height, width)
                frame[:] = (height, full_height, top), (width, full_width, left)
        return frames


def parse_size(size: str | int) -> tuple[int, int]:
    """(height, width) from a number such as 224 or `224`, or from `224x336` (height x width).

    Raises:
        ConfigError: anything else.
    """
    parts = str(size).lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(
            f"`size` must be a number of pixels or HEIGHTxWIDTH, got `{size}`", hint="for example `--size 224` or `--size 224x336`"
        )
    return int(parts[0]), int(parts[-1])


def preprocess_image(image: Image.Image, options: Preprocess) -> Image.Image:
    """The pixels that the model sees, from an upright RGB image."""
    place = options.placement(image.height, image.width)
    if options.policy == "crop":
        return _resize_and_crop(image, place, (options.height, options.width))
    pixels = image.resize((place.width, place.height), Image.Resampling.BICUBIC)
    if options.policy != "pad":
        return pixels
    canvas = Image.new("RGB", (options.width, options.height), options.colour_outside)
    canvas.paste(pixels, (-place.left, -place.top))
    return canvas


def _resize_and_crop(image: Image.Image, place: Placement, crop: tuple[int, int]) -> Image.Image:
    """The centre `crop` of the resized image, bit for bit as torchvision's Resize and CenterCrop give it.

    Of large or very long images only the part that the crop shows is resized, in one call. Pillow holds the corners of that part in
    float32, so one value in some thousands is rounded to the next grey level.
    """
    height, width, top, left = place
    size = image.height, image.width
    is_long = max(height, width) > EXACT_ASPECT * min(height, width)
    is_large = size[0] * size[1] > EXACT_PIXELS and _is_across_first(size, crop) == _is_across_first(size, (height, width))
    if not (is_long or is_large):
        return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + crop[1], top + crop[0]))
    x, y = image.width / width, image.height / height  # pixels of the image per pixel of the result
    box = (left * x, top * y, (left + crop[1]) * x, (top + crop[0]) * y)
    return image.resize(crop[::-1], Image.Resampling.BICUBIC, box=box)


def _is_across_first(shape: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether Pillow resizes across before down, from one (height, width) to another. Since version 13 it takes the cheaper order."""
    return shape[0] - resized[0] <= max(2 * (shape[1] - resized[1]), 0)


def preprocess(image: NDArray[np.uint8], options: Preprocess) -> NDArray[np.uint8]:
    """The pixels that the model sees, (h, w, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8, RGB, upright.
        options: size, policy and patch size.
    """
    return np.asarray(preprocess_image(Image.fromarray(image), options))
