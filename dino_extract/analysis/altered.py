"""Altered copies of photographs, as they come about in the wild: to measure how well duplicates are found."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

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
