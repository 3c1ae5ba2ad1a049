"""Contact sheets: strips of small pictures with a title each, written to one file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dino_extract.analysis.pictures import fit_within, source_picture
from dino_extract.analysis.writing import writing
from dino_extract.decode import open_upright
from dino_extract.errors import DinoExtractError
from dino_extract.source import ImageRef, read_image_bytes
from dino_extract.store import Store

TILE_PX = 128
COLUMNS = 8
_GAP_PX = 6
_TITLE_PX = 22
_CAPTION_PX = 16
_CHAR_PX = 6.2  # mean width of a letter of the default font at this size; longer captions are cut


class Tile(NamedTuple):
    """One small picture, framed where it stands out; None where the image cannot be had any more."""

    picture: Image.Image | None
    caption: str
    is_framed: bool = False


class Strip(NamedTuple):
    """Pictures that belong together."""

    title: str
    tiles: Sequence[Tile]


def stored_tile(store: Store, path: str, caption: str, *, is_framed: bool = False) -> Tile:
    """The image behind a row, small; without a picture if it is no longer where it was embedded from."""
    try:
        picture = source_picture(store, path, reduce_to=(TILE_PX, TILE_PX))
    except DinoExtractError:  # the sheet shows what there is; the result it accompanies does not need the picture
        return Tile(None, caption, is_framed)
    return Tile(fit_within(picture, TILE_PX), caption, is_framed)


def file_tile(path: str, caption: str) -> Tile:
    """An image file that is in no store, small; without a picture if it cannot be read."""
    try:
        data = read_image_bytes(ImageRef(os.fsencode(path), -1, 0, b""))
        picture = open_upright(data, reduce_to=(TILE_PX, TILE_PX))[0]
    except DinoExtractError:  # as in `stored_tile`
        return Tile(None, caption)
    return Tile(fit_within(picture, TILE_PX), caption)


def draw_strips(strips: Iterable[Strip], path: str | os.PathLike[str], *, columns: int = COLUMNS) -> None:
    """Write strips one under another, each wrapped after `columns` pictures.

    Raises:
        ConfigError: the picture cannot be written.
    """
    strips = list(strips)
    cell_w, cell_h = TILE_PX + _GAP_PX, TILE_PX + _CAPTION_PX + _GAP_PX
    heights = [_TITLE_PX + cell_h * -(-len(strip.tiles) // columns) for strip in strips]
    widest = max((min(len(strip.tiles), columns) for strip in strips), default=1)
    sheet = Image.new("RGB", (max(widest, 3) * cell_w + _GAP_PX, sum(heights) + _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    top = _GAP_PX
    for strip, height in zip(strips, heights, strict=True):
        draw.text((_GAP_PX, top + 3), _cut(strip.title, sheet.width - 2 * _GAP_PX), fill="black", font=ImageFont.load_default(13))
        for number, tile in enumerate(strip.tiles):
            _draw_tile(sheet, draw, tile, _GAP_PX + number % columns * cell_w, top + _TITLE_PX + number // columns * cell_h)
        top += height
    with writing(path, "contact sheet", also=ValueError):
        sheet.save(path)


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    font = ImageFont.load_default(11)
    if tile.picture is None:
        draw.rectangle((left, top, left + TILE_PX - 1, top + TILE_PX - 1), fill="lightgrey")
        draw.text((left + 8, top + TILE_PX // 2 - 8), "image not found", fill="black", font=font)
    else:
        picture = tile.picture if max(tile.picture.size) == TILE_PX else fit_within(tile.picture, TILE_PX)
        sheet.paste(picture, (left + (TILE_PX - picture.width) // 2, top + (TILE_PX - picture.height) // 2))
    if tile.is_framed:
        draw.rectangle((left - 3, top - 3, left + TILE_PX + 2, top + TILE_PX + 2), outline="black", width=2)
    draw.text((left, top + TILE_PX + 1), _cut(tile.caption, TILE_PX), fill="black", font=font)


def _cut(text: str, width_px: int) -> str:
    """The text, or its end behind an ellipsis where it is too long: of a path, the end tells more."""
    most = int(width_px / _CHAR_PX)
    return text if len(text) <= most else "..." + text[-(most - 3) :]
