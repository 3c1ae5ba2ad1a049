"""From an upright RGB picture to the pixels a model sees: which part of it, how large, and the record of that in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_extract.config import IMAGENET_MEAN, IMAGENET_STD, MAX_PIXELS, AlphaPolicy, Decode, SizePolicy
from dino_extract.errors import ConfigError
from dino_extract.images.containers import MAX_FILE_BYTES

RESIZE_OF_CROP = (256, 224)  # the official evaluation resizes the shorter side to 256 and crops 224
EXACT_ASPECT = 16  # a longer picture is not resized as a whole: it could fill the memory, to be cropped away
EXACT_PIXELS = 2**20  # nor is a larger one: what is cropped away takes as long as decoding
MAX_JPEG_PIXELS = 2**25  # of a JPEG that is decoded beside the model, where it takes 100 MB
MAX_DEVICE_PIXELS = EXACT_PIXELS  # of a picture that is resized beside the model: up to 3 MB, of which whole batches wait in memory
MAX_ASPECT = 8  # `native`: at most this many times longer than wide, else one scan line would fill the memory with patches


class Placement(NamedTuple):
    """The size of a resized picture in pixels, and which pixel of it comes to the top left of the result (less than 0: beside it)."""

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
    """What is done to every image between its file and the model.

    The defaults are the official DINOv2 evaluation transform (Pillow, bicubic, shorter side 256, centre crop 224) on upright images.

    Args:
        policy: `crop` the centre; `squash` everything into the size; `pad` to the size; `native` aspect ratio, which gives ragged grids.
        height: pixels, a multiple of `patch`; the shorter side for `native`.
        width: pixels, a multiple of `patch`.
        patch: side of the model's patches in pixels.
        alpha: what shows through transparency (see `decode_image`).
        fast_decode: decode large JPEGs at 1/2, 1/4 or 1/8 before resizing, never below twice the size: faster, not exact.
        decode: where plain JPEGs are decoded: by the `host`, or beside the model, on its `device`.
        max_pixels: images with more are refused.
        max_bytes: files with more are refused.
        mean: of the RGB channels, 0..1, subtracted by the model.
        std: of the RGB channels, 0..1.

    Raises:
        ConfigError: a size that is no multiple of the patch size, or a limit below 1.
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
        for name, value, choices in (("preprocess", self.policy, get_args(SizePolicy)), ("alpha", self.alpha, get_args(AlphaPolicy))):
            if value not in choices:
                raise ConfigError(f"`--{name}` takes {', '.join(choices)}, got `{value}`")
        for side in (self.height, self.width):
            if side < self.patch or side % self.patch:
                below = max(side // self.patch, 1) * self.patch
                raise ConfigError(
                    f"image size {side} is not a multiple of the patch size {self.patch}",
                    hint=f"the nearest sizes are `--size {below}` and `--size {below + self.patch}`",
                )
        if self.policy == "native" and self.height != self.width:
            raise ConfigError(
                f"`--preprocess native` takes one number, the shorter side, got {self.height}x{self.width}", hint=f"`--size {self.height}`"
            )
        if self.max_pixels < 1 or self.max_bytes < 1:
            raise ConfigError(f"limits must be at least 1, got {self.max_pixels} pixels and {self.max_bytes} bytes")

    @property
    def output_shape(self) -> tuple[int, int] | None:
        """(height, width) of what the model sees; None for `native`, where it depends on the image."""
        return None if self.policy == "native" else (self.height, self.width)

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) patches of every image; None for `native`."""
        return None if self.policy == "native" else (self.height // self.patch, self.width // self.patch)

    @property
    def colour_outside(self) -> tuple[int, int, int]:
        """RGB 0..255 around a padded picture: what the model sees as zero."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def as_record(self) -> dict[str, Any]:
        """Everything that decides the pixels, as JSON for the file; `from_record` reads it back."""
        options: dict[str, Any] = asdict(self)
        options["mean"], options["std"] = list(self.mean), list(self.std)
        if self.decode == "host":  # as it was before there was a choice
            del options["decode"]
        return {**options, "resize": _RULES[self.policy], "interpolation": "bicubic, Pillow", "orientation": "exif applied"}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Preprocess:
        """The preprocessing that a file was made with."""
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
        """What becomes of an image of this upright size in pixels."""
        shape = self.resized_shape(height, width)
        if self.policy == "crop":
            top, left = (round((full - size) / 2.0) for full, size in zip(shape, (self.height, self.width), strict=True))
            return Placement(*shape, top, left)  # half to even, as torchvision's CenterCrop
        if self.policy == "pad":
            return Placement(*shape, -((self.height - shape[0]) // 2), -((self.width - shape[1]) // 2))
        return Placement(*shape, 0, 0)

    def can_resize_later(self, height: int, width: int, *, is_jpeg: bool = False) -> bool:
        """Whether a decoded picture of this size is small and compact enough to be resized beside the model, with others at once.

        A JPEG that is decoded there may be larger, as only its bytes wait in memory.
        Not where Pillow resizes down before across: the rounding is another.
        """
        shape = self.resized_shape(height, width)
        is_compact = all(max(sides) <= EXACT_ASPECT * min(sides) for sides in ((height, width), shape))
        is_simple = self.policy != "native" and is_compact and _is_across_first((height, width), shape)
        return is_simple and height * width <= (MAX_JPEG_PIXELS if is_jpeg else MAX_DEVICE_PIXELS)


@dataclass(eq=False)
class Jpeg:
    """A JPEG that is decoded beside the model.

    Args:
        content: (n,) uint8, the whole file.
        size: (height, width) of the picture in pixels.
        error: why it could not be decoded, set by who has tried.
    """

    content: NDArray[np.uint8]
    size: tuple[int, int]
    error: str = ""


Picture = NDArray[np.uint8] | Jpeg


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of different sizes, in the order of their rows, that are resized beside the model.

    Args:
        images: (H, W, 3) uint8 each, RGB, upright; (0, 0, 3) where there is none; or JPEGs that are to be decoded.
        is_resized: (B,) bool, those that are already what the model sees.
        options: what is made of the others; not `native`.
    """

    images: Sequence[Picture]
    is_resized: NDArray[np.bool_]
    options: Preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Pictures:
        return Pictures(self.images[part], self.is_resized[part], self.options)

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture in pixels, before it is resized."""
        return [image.size if isinstance(image, Jpeg) else (image.shape[0], image.shape[1]) for image in self.images]

    def frames(self) -> NDArray[np.int64]:
        """Length of each picture, length it is resized to, and place of the first result in that, down and across: (B, 2, 3) pixels."""
        frames = np.zeros((len(self), 2, 3), np.int64)
        for frame, (height, width), is_resized in zip(frames, self.sizes(), self.is_resized.tolist(), strict=True):
            if is_resized or not height:
                frame[:, 0] = frame[:, 1] = height, width
            else:
                full_height, full_width, top, left = self.options.placement(height, width)
                frame[:] = (height, full_height, top), (width, full_width, left)
        return frames


def parse_size(size: str | int) -> tuple[int, int]:
    """(height, width) from `224`, as text or number, or `224x336` (height x width).

    Raises:
        ConfigError: anything else.
    """
    parts = str(size).lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(
            f"`--size` takes a number of pixels or HEIGHTxWIDTH, got `{size}`", hint="for example `--size 224` or `--size 224x336`"
        )
    return int(parts[0]), int(parts[-1])


def preprocess_picture(picture: Image.Image, options: Preprocess) -> Image.Image:
    """The pixels that the model sees, from an upright RGB Pillow image."""
    place = options.placement(picture.height, picture.width)
    if options.policy == "crop":
        return _resize_and_crop(picture, place, (options.height, options.width))
    pixels = picture.resize((place.width, place.height), Image.Resampling.BICUBIC)
    if options.policy != "pad":
        return pixels
    canvas = Image.new("RGB", (options.width, options.height), options.colour_outside)
    canvas.paste(pixels, (-place.left, -place.top))
    return canvas


def _resize_and_crop(picture: Image.Image, place: Placement, crop: tuple[int, int]) -> Image.Image:
    """The centre `crop` of the resized picture, bit for bit as torchvision's Resize and CenterCrop give it.

    Of large or very long pictures only what the crop shows is resized, in one call. Pillow holds its corners in float32, so one in some
    thousand values is rounded to the next grey level.
    """
    height, width, top, left = place
    size = picture.height, picture.width
    is_long = max(height, width) > EXACT_ASPECT * min(height, width)
    is_large = size[0] * size[1] > EXACT_PIXELS and _is_across_first(size, crop) == _is_across_first(size, (height, width))
    if not (is_long or is_large):
        return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + crop[1], top + crop[0]))
    x, y = picture.width / width, picture.height / height  # pixels of the picture per pixel of the result
    box = (left * x, top * y, (left + crop[1]) * x, (top + crop[0]) * y)
    return picture.resize(crop[::-1], Image.Resampling.BICUBIC, box=box)


def _is_across_first(shape: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether Pillow resizes across before down, from one (height, width) to another: not, since version 13, if that is much more work."""
    return shape[0] - resized[0] <= max(2 * (shape[1] - resized[1]), 0)


def preprocess(image: NDArray[np.uint8], options: Preprocess) -> NDArray[np.uint8]:
    """The pixels that the model sees, (h, w, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8, RGB, upright.
        options: size, policy and patch size.
    """
    return np.asarray(preprocess_picture(Image.fromarray(image), options))
