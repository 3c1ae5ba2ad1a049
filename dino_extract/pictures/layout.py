"""Images side by side and in a grid, on white, and how they are written."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from PIL import Image, ImageDraw

from dino_extract.errors import ConfigError
from dino_extract.files import PathLike, check_target, replace_atomically
from dino_extract.names import file_stem
from dino_extract.pictures.captions import draw_caption

GAP_PX = 6  # white between images
_CAPTION_PX = 18


def numbered_png(number: int, count: int, path: str) -> str:
    """The name of a PNG of one of `count` images: its number, at least three digits, and the name of the image.

    >>> numbered_png(7, 20, "cats/a b.jpg")
    '007_cats__a_b.png'
    """
    return f"{number:0{max(3, len(str(count - 1)))}}_{os.path.splitext(file_stem(path))[0]}.png"


def fit_within(image: Image.Image, side_px: int) -> Image.Image:
    """The image scaled so that its longer side is `side_px`."""
    scale = side_px / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images in one row."""
    return _lay_out(images, len(images), captions=None, margin=0)


def image_grid(images: Sequence[Image.Image], captions: Sequence[str] | None = None, *, columns: int | None = None) -> Image.Image:
    """Images in rows and columns, with a caption below each if given. Without `columns` the grid is about 4:3."""
    if columns is None:
        width, height = (max(sizes) for sizes in zip(*(image.size for image in images), strict=True))
        columns = min(len(images), max(1, round(math.sqrt(len(images) * 4 / 3 * height / width))))
    return _lay_out(images, columns, captions, margin=GAP_PX)


def _lay_out(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None, margin: int) -> Image.Image:
    cell_w, caption_h = max(image.width for image in images), _CAPTION_PX if captions else 0
    rows = [range(first, min(first + columns, len(images))) for first in range(0, len(images), columns)]
    heights = [max(images[index].height for index in row) + caption_h for row in rows]
    size = (columns * (cell_w + GAP_PX) - GAP_PX + 2 * margin, sum(heights) + GAP_PX * (len(rows) - 1) + 2 * margin)
    sheet = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(sheet), margin
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left, image = margin + column * (cell_w + GAP_PX), images[index]
            sheet.paste(image, (left + (cell_w - image.width) // 2, top))
            if captions:
                at = (left + cell_w / 2, top + image.height + 2)
                draw_caption(draw, at, captions[index], size_px=12, width_px=cell_w, is_centred=True)
        top += height + GAP_PX
    return sheet


def check_picture_target(path: PathLike | None, what: str, *, overwrite: bool = False) -> None:
    """Check before the work that `write_picture` can write there. None asks for nothing.

    Raises:
        ConfigError: as `check_target`, or Pillow writes no format with this suffix.
    """
    check_target(path, what, overwrite=overwrite)
    suffix = ".png" if path is None else os.path.splitext(path)[1]
    if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
        message = f"{what} `{os.fspath(path or '')}` cannot be written: no picture has the suffix `{suffix}`"
        raise ConfigError(message, hint="`.png` or `.jpg`")


def write_picture(picture: Image.Image, path: PathLike, what: str, *, overwrite: bool = False) -> None:
    """Write a picture in the format of its suffix.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    check_picture_target(path, what, overwrite=overwrite)
    with replace_atomically(path, what, overwrite=overwrite, also=(ValueError,)) as draft:
        picture.save(draft)
