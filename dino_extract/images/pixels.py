"""From the bytes of a file to the pixels that a model sees: the one place where decoding and preprocessing are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_extract.images.decode import open_upright, upright
from dino_extract.images.preprocess import Preprocess, preprocess_image

# Gives a contiguous uint8 array of a shape (h, w, 3), for pixels.
Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


def allocate_pixels(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory of this process, not cleared."""
    return np.empty(shape, np.uint8)


class PreparedImage(NamedTuple):
    """An image that was decoded, and resized unless that can be done later."""

    pixels: Image.Image  # RGB, upright
    is_resized: bool  # whether the pixels are what the model sees
    size: tuple[int, int]  # (height, width) of the original, upright


def pixels_of(content: bytes | Image.Image, options: Preprocess) -> NDArray[np.uint8]:
    """The pixels that the model sees, (h, w, 3) uint8 RGB. Arguments and errors as for `prepare_image`."""
    return np.asarray(prepare_image(content, options).pixels)


def prepare_image(content: bytes | Image.Image, options: Preprocess, *, resizes: bool = True) -> PreparedImage:
    """Decode an image and resize it.

    Args:
        content: the bytes of a file, or a Pillow image.
        options: size, limits, and all other choices.
        resizes: resize every image; if not, only those that cannot be resized later, on the device.

    Raises:
        ImageError: not an image, damaged, too large, or out of memory.
    """
    decoded, size = decoded_image(content, options)
    is_resized = resizes or not options.can_resize_later(decoded.height, decoded.width)
    return PreparedImage(preprocess_image(decoded, options) if is_resized else decoded, is_resized, size)


def decoded_image(content: bytes | Image.Image, options: Preprocess) -> tuple[Image.Image, tuple[int, int]]:
    """The image, RGB and upright, and the (height, width) that it has in full resolution. Arguments and errors as for `prepare_image`."""
    if isinstance(content, Image.Image):
        image = upright(content, alpha=options.alpha)
        return image, (image.height, image.width)
    reduce_to = (options.height, options.width) if options.fast_decode else None
    return open_upright(content, max_pixels=options.max_pixels, alpha=options.alpha, reduce_to=reduce_to)
