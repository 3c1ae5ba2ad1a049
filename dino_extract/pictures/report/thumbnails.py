"""Thumbnails of many images as a few JPEG sheets."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_extract.errors import DinoExtractError
from dino_extract.pictures.layout import fit_within
from dino_extract.pictures.source_images import source_image
from dino_extract.store import Store

MAX_SIDE_PX = 192
_MIN_SIDE_PX = 24
MAX_PIXELS = 42_000_000
_SHEET_PX = 2048  # side of a sheet; every browser takes this
_QUALITY = 78


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Sheets of square cells; thumbnail i is in the top left of cell i % per_sheet of sheet i // per_sheet.

    Args:
        sheets: JPEG files.
        side_px: side of a cell.
        per_row: cells in a row of a sheet.
        size: (n, 2) uint8 width and height of each thumbnail in pixels; 0 where the image can no longer be read.
    """

    sheets: list[bytes]
    side_px: int
    per_row: int
    size: NDArray[np.uint8]


def thumbnails_of(
    store: Store, paths: Sequence[str], on_progress: Callable[[int, int], None] | None = None, *, max_pixels: int = MAX_PIXELS
) -> Thumbnails:
    """Thumbnails as large as the size of the page allows; an image that can no longer be read has none.

    Args:
        store: the file that says where the images are.
        paths: of the images.
        on_progress: called with the number done and of all.
        max_pixels: of all sheets together: about 8 MB of JPEG, and 170 MB when a browser has decoded them.
    """
    side = int(min(MAX_SIDE_PX, max(_MIN_SIDE_PX, math.sqrt(max_pixels / max(len(paths), 1)) // 8 * 8)))
    per_row = _SHEET_PX // side
    size = np.zeros((len(paths), 2), np.uint8)
    sheets = []
    for first in range(0, len(paths), per_row * per_row):
        chunk = paths[first : first + per_row * per_row]
        sheet = Image.new("RGB", (min(len(chunk), per_row) * side, math.ceil(len(chunk) / per_row) * side), "#e8e8e8")
        for cell, path in enumerate(chunk):
            thumbnail = _thumbnail(store, path, side)
            if thumbnail is not None:
                sheet.paste(thumbnail, (cell % per_row * side, cell // per_row * side))
                size[first + cell] = thumbnail.size
            if on_progress:
                on_progress(first + cell + 1, len(paths))
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=_QUALITY, optimize=True)
        sheets.append(file.getvalue())
    return Thumbnails(sheets, side, per_row, size)


def _thumbnail(store: Store, path: str, side: int) -> Image.Image | None:
    try:
        return fit_within(source_image(store, path, reduce_to=(side, side)), side)
    except DinoExtractError:  # deleted or changed since; the page says how many
        return None
