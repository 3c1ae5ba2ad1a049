"""Contact sheets: strips of small images, each with a title, drawn into one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from dino_extract.errors import DinoExtractError
from dino_extract.images.containers import ImageRef
from dino_extract.images.decode import open_upright
from dino_extract.images.reading import read_image_bytes
from dino_extract.names import printable
from dino_extract.pictures.captions import draw_caption
from dino_extract.pictures.layout import fit_within, write_picture
from dino_extract.pictures.source_images import source_image
from dino_extract.store import Store

TILE_PX = 128
COLUMNS = 8
_GAP_PX = 6
_STRIP_GAP_PX = 24  # between strips that share a line
_TITLE_PX = 25
_LINE_PX = 14  # of a caption, which has two
_CELL_W = TILE_PX + _GAP_PX
_TEXT_PX = 2 * _LINE_PX + 2 * _GAP_PX  # below an image, with white above and below


class Tile(NamedTuple):
    """One small image with two lines of text below it.

    Args:
        image: within a square of `TILE_PX`; None if the image cannot be read any more.
        note: the first line, short.
        name: the second line, which is shortened if it is too long.
        is_framed: whether the image has a frame.
    """

    image: Image.Image | None
    note: str
    name: str = ""
    is_framed: bool = False


class Strip(NamedTuple):
    """Images that belong together."""

    title: str
    tiles: Sequence[Tile]


def stored_tile(store: Store, path: str, note: str, *, is_framed: bool = False) -> Tile:
    """A tile of an image of a store; grey if the image is no longer where it was embedded from."""
    return _tile(lambda: source_image(store, path, reduce_to=(TILE_PX, TILE_PX)), path, note, is_framed)


def file_tile(path: str, note: str, *, is_framed: bool = False) -> Tile:
    """A tile of an image file that is in no store; grey if the file cannot be read."""
    file = ImageRef(os.fsencode(path), os.fsencode(path))
    return _tile(lambda: open_upright(read_image_bytes(file), reduce_to=(TILE_PX, TILE_PX))[0], path, note, is_framed)


def _tile(read: Callable[[], Image.Image], path: str, note: str, is_framed: bool) -> Tile:
    try:
        image = fit_within(read(), TILE_PX)
    except DinoExtractError:  # the sheet shows the images there are
        image = None
    return Tile(image, note, printable(path), is_framed)


def draw_strips(strips: Iterable[Strip], path: str | os.PathLike[str], *, columns: int = COLUMNS, overwrite: bool = False) -> list[str]:
    """Draw strips in lines of at most `columns` images. A longer strip takes several lines, and short ones share a line.

    Returns:
        The names of the tiles without an image.

    Raises:
        ConfigError: the sheet exists or cannot be written.
    """
    lines = _lines(strips, columns)
    heights = [_row_heights(line, columns) for line in lines]
    widths = [sum(_width(strip, columns) + _STRIP_GAP_PX for strip in line) - _STRIP_GAP_PX for line in lines]
    size = (max(widths, default=0) + _GAP_PX, sum(_TITLE_PX + sum(rows) for rows in heights) + _GAP_PX)
    sheet = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(sheet), _GAP_PX
    for line, rows in zip(lines, heights, strict=True):
        left = _GAP_PX
        for strip in line:
            _draw_strip(sheet, draw, strip, (left, top), rows, columns)
            left += _width(strip, columns) + _STRIP_GAP_PX
        top += _TITLE_PX + sum(rows)
    write_picture(sheet, path, "contact sheet", overwrite=overwrite)
    return [tile.name for line in lines for strip in line for tile in strip.tiles if tile.image is None]


def _lines(strips: Iterable[Strip], columns: int) -> list[list[Strip]]:
    """Strips in their order, as many on a line as fit. A strip takes the room of two images at least, for its title."""
    lines: list[list[Strip]] = []
    room = 0
    for strip in strips:
        taken = max(len(strip.tiles), 2)
        if taken > room:
            lines.append([])
            room = columns
        lines[-1].append(strip)
        room -= taken
    return lines


def _row_heights(line: Sequence[Strip], columns: int) -> list[int]:
    """Height of each row of images with its text: a row of landscape photographs is lower than a tile."""
    tallest: dict[int, int] = {}
    for strip in line:
        for number, tile in enumerate(strip.tiles):
            row = number // columns
            tallest[row] = max(tallest.get(row, 0), TILE_PX if tile.image is None else tile.image.height)
    return [height + _TEXT_PX for height in tallest.values()]


def _width(strip: Strip, columns: int) -> int:
    return max(min(len(strip.tiles), columns), 2) * _CELL_W


def _draw_strip(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, strip: Strip, at: tuple[int, int], rows: Sequence[int], columns: int
) -> None:
    """Draw the title and the tiles of a strip, whose top left corner is `at`, in rows of the given heights."""
    left, top = at
    draw_caption(draw, (left, top + 3), strip.title, size_px=13, width_px=_width(strip, columns) - _GAP_PX)
    for number, tile in enumerate(strip.tiles):
        row, column = divmod(number, columns)
        place = (left + column * _CELL_W, top + _TITLE_PX + sum(rows[:row]))
        _draw_tile(sheet, draw, tile, place, rows[row] - _TEXT_PX)


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, at: tuple[int, int], height_px: int) -> None:
    """Draw the image in the middle of its place, whose top left corner is `at`, and the text below it."""
    left, top = at
    image, middle = tile.image, left + TILE_PX // 2
    if image is None:
        image = Image.new("RGB", (TILE_PX, TILE_PX), "lightgrey")
        draw_caption(
            ImageDraw.Draw(image), (TILE_PX / 2, TILE_PX / 2 - 7), "image not found", size_px=11, width_px=TILE_PX, is_centred=True
        )
    x, y = middle - image.width // 2, top + (height_px - image.height) // 2
    if tile.is_framed:
        draw.rectangle((x - 3, y - 3, x + image.width + 2, y + image.height + 2), outline="black", width=2)
    sheet.paste(image, (x, y))
    for number, text in enumerate((tile.note, tile.name)):
        place = (middle, top + height_px + _GAP_PX / 2 + number * _LINE_PX)
        draw_caption(draw, place, text, size_px=11, width_px=TILE_PX, is_centred=True)
