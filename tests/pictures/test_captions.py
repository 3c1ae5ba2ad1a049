"""Captions are readable, whatever their script and length."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dino_extract.pictures.captions import draw_caption, shortened


def drawn(text: str, width_px: int = 400) -> np.ndarray:
    """(40, width) bool, where there is ink."""
    sheet = Image.new("L", (width_px, 40), 255)
    draw_caption(ImageDraw.Draw(sheet), (0, 5), text, size_px=20, width_px=width_px)
    return np.asarray(sheet) < 128


def test_letters_that_the_font_lacks_lose_their_accents_or_become_numbers() -> None:
    """A name in any script is drawn as its plain letters and as the numbers of the other ones."""
    assert (drawn("M\u00fcnchen \u65e5.jpg") == drawn("Munchen \\u65e5.jpg")).all()


def test_a_long_caption_stays_within_its_width() -> None:
    """The end of a long path is drawn and nothing is drawn outside the width."""
    sheet = Image.new("L", (600, 40), 255)

    draw_caption(ImageDraw.Draw(sheet), (0, 5), "folder/" * 50 + "photograph" * 9 + ".jpg", size_px=20, width_px=300)

    ink = np.asarray(sheet) < 128
    assert ink[:, 250:301].any()
    assert not ink[:, 301:].any()


@pytest.mark.parametrize(
    ("text", "chars", "expected"),
    [
        ("samoyed/1.jpg", 17, "samoyed/1.jpg"),
        ("dogs/train/samoyed/1.jpg", 17, "samoyed/1.jpg"),
        ("train/samoyed/n02111889_12_val_00034430.JPEG", 17, "samoyed/...034430"),
        ("old_english_sheepdog/n02105641_00009876.JPEG", 20, "old_english...009876"),
        ("n02111889_12_val_00034430.JPEG", 17, "n021118...30.JPEG"),
    ],
)
def test_a_long_path_keeps_the_folder_of_the_image(text: str, chars: int, expected: str) -> None:
    """The class stays readable, and the middle of the name makes room for it."""
    assert len(shortened(text, lambda line: len(line) <= chars)) <= chars
    assert shortened(text, lambda line: len(line) <= chars) == expected
