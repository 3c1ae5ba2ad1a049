"""Contact sheets show the pictures where they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_extract.errors import ConfigError
from dino_extract.pictures.strips import COLUMNS, TILE_PX, Strip, Tile, draw_strips, file_tile, stored_tile
from dino_extract.store import open_store
from tests.analysis.stores import write_store


def test_pictures_are_in_order(tmp_path: Path) -> None:
    """The first tile is left of the second, and the second strip below the first."""
    red, green, blue = (Tile(Image.new("RGB", (TILE_PX, TILE_PX), colour), colour) for colour in ("red", "lime", "blue"))

    draw_strips([Strip("one", [red, green]), Strip("two", [blue])], tmp_path / "sheet.png", columns=3)

    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    centres = [np.argwhere((pixels == colour).all(axis=2)).mean(axis=0) for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255])]
    assert centres[0][0] == pytest.approx(centres[1][0])
    assert centres[0][1] + TILE_PX <= centres[1][1]
    assert centres[0][0] + TILE_PX <= centres[2][0]


def test_a_framed_tile_has_a_frame(tmp_path: Path) -> None:
    """The first tile has a black frame around it, the second has none, and both show their whole picture."""
    tile = Tile(Image.new("RGB", (TILE_PX, TILE_PX), "red"), "")

    draw_strips([Strip("", [tile._replace(is_framed=True), tile])], tmp_path / "sheet.png")

    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    black = np.argwhere((pixels == 0).all(axis=2))
    red = np.argwhere((pixels == [255, 0, 0]).all(axis=2))
    assert len(red) == 2 * TILE_PX**2
    assert (black.min(axis=0) < red.min(axis=0)).all()
    assert black.max(axis=0)[1] < red.max(axis=0)[1] - TILE_PX


def test_long_strips_wrap(tmp_path: Path) -> None:
    """A strip of more tiles than columns takes two lines, and all of them are drawn."""
    tile = Tile(Image.new("RGB", (TILE_PX, TILE_PX), "red"), "")

    draw_strips([Strip("many", [tile] * (COLUMNS + 2))], tmp_path / "sheet.png")

    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (pixels == [255, 0, 0]).all(axis=2).sum() == (COLUMNS + 2) * TILE_PX**2


def test_short_strips_share_a_line(tmp_path: Path) -> None:
    """Four pairs fill a line of eight, with more room between than within them, and the fifth begins the next line."""
    tile = Tile(Image.new("RGB", (TILE_PX, TILE_PX), "red"), "")

    draw_strips([Strip("pair", [tile, tile])] * 5, tmp_path / "sheet.png", columns=8)

    is_red = (np.asarray(Image.open(tmp_path / "sheet.png")) == [255, 0, 0]).all(axis=2)
    tops = np.flatnonzero(np.diff(is_red.any(axis=1).astype(int)) == 1)
    assert len(tops) == 2
    gaps = np.diff(np.flatnonzero(is_red[tops[0] + 1])) - 1
    assert [int(gap) for gap in gaps[gaps > 0]] == [6, 30, 6, 30, 6, 30, 6]
    assert is_red[tops[1] + 1].sum() == 2 * TILE_PX


def test_a_strip_that_does_not_fit_begins_a_line(tmp_path: Path) -> None:
    """Strips of two, three and one in lines of four: the three are below the two, and the one is below them."""
    tile = Tile(Image.new("RGB", (TILE_PX, TILE_PX), "red"), "")

    draw_strips([Strip("", [tile] * number) for number in (2, 3, 1)], tmp_path / "sheet.png", columns=4)

    is_red = (np.asarray(Image.open(tmp_path / "sheet.png")) == [255, 0, 0]).all(axis=2)
    tops = np.flatnonzero(np.diff(is_red.any(axis=1).astype(int)) == 1)
    assert [int(is_red[top + 1].sum()) // TILE_PX for top in tops] == [2, 3, 1]


def test_rows_of_landscape_pictures_are_lower(tmp_path: Path) -> None:
    """A row is as high as its highest picture: the text is right below it, and low pictures are in the middle of a higher row."""
    low, high = (Tile(Image.new("RGB", (TILE_PX, height), "red"), "") for height in (50, 100))

    draw_strips([Strip("", [low, low, high, low])], tmp_path / "sheet.png", columns=2)

    is_red = (np.asarray(Image.open(tmp_path / "sheet.png")) == [255, 0, 0]).all(axis=2)
    left, right = (np.flatnonzero(is_red[:, column]) for column in (10, is_red.shape[1] - 10))
    text = left[50] - left[49] - 1  # between the first row and the second
    assert 28 <= text <= 50
    assert [int(each) for each in right[[0, 49]]] == [int(each) for each in left[[0, 49]]]
    assert right[50] - left[50] == left[149] - right[99] == 25


def test_a_long_name_leaves_the_note_as_it_is(tmp_path: Path) -> None:
    """The note reads the same above a short and above a long name, and no text leaves its tile."""
    picture = Image.new("RGB", (TILE_PX, TILE_PX), "red")

    draw_strips([Strip("", [Tile(picture, "0.9876", "a.jpg"), Tile(picture, "0.9876", "folder/" * 20 + "a.jpg")])], tmp_path / "sheet.png")

    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    bottom, left = (
        np.argwhere((pixels == [255, 0, 0]).all(axis=2)).max(axis=0)[0],
        np.argwhere((pixels == [255, 0, 0]).all(axis=2)).min(axis=0)[1],
    )
    short, long = (pixels[bottom + 1 :, first : first + TILE_PX] for first in (left, left + TILE_PX + 6))
    assert (short[:16] == long[:16]).all()
    assert (short[:16] < 128).any()
    assert (long[16:] < 128).sum() > 2 * (short[16:] < 128).sum()
    assert (pixels[bottom + 1 :, left + TILE_PX : left + TILE_PX + 6] == 255).all()


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    """A line break does not make a third line, and bytes that are not UTF-8 are escaped."""
    assert file_tile("a\nb\udcff.jpg", "").name == "a\\nb\\xff.jpg"


def test_stored_pictures_are_found_by_their_key(tmp_path: Path) -> None:
    """A tile shows the file that the store's root and key lead to, at the size of a tile."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (300, 200), "red").save(tmp_path / "photos" / "a.png")
    store = open_store(write_store(tmp_path / "x.h5", ["a.png"], {"features": np.ones((1, 4), np.float32)}, root=str(tmp_path / "photos")))

    tile = stored_tile(store, "a.png", "a")

    assert tile.image is not None
    assert tile.image.size == (TILE_PX, round(TILE_PX * 2 / 3))
    assert tile.image.getpixel((5, 5)) == (255, 0, 0)


def test_a_deleted_image_is_a_grey_tile(tmp_path: Path) -> None:
    """A missing image does not spoil the sheet, and is named."""
    store = open_store(write_store(tmp_path / "x.h5", ["a.png"], {"features": np.ones((1, 4), np.float32)}, root=str(tmp_path)))

    lost = draw_strips([Strip("gone", [stored_tile(store, "a.png", "a"), file_tile(str(tmp_path / "b.png"), "b")])], tmp_path / "sheet.png")

    assert lost == ["a.png", str(tmp_path / "b.png")]

    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (pixels == [211, 211, 211]).all(axis=2).sum() > TILE_PX**2


def test_a_sheet_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A missing folder gives one sentence."""
    with pytest.raises(ConfigError, match=r"contact sheet `.*x.png` cannot be written"):
        draw_strips([Strip("one", [Tile(None, "")])], tmp_path / "none" / "x.png")
