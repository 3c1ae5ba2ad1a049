"""Captions are readable, whatever the script and whatever fonts there are."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dino_extract.pictures import captions
from dino_extract.pictures.captions import draw_caption, system_font


@pytest.fixture(autouse=True)
def fonts_looked_up_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one test finds is not what the next one would."""
    monkeypatch.setattr(captions, "_found", [])
    system_font.cache_clear()
    yield
    system_font.cache_clear()


def drawn(text: str, width_px: int = 400) -> np.ndarray:
    """(40, width) bool, where there is ink."""
    picture = Image.new("L", (width_px, 40), 255)
    draw_caption(ImageDraw.Draw(picture), (0, 5), text, size_px=20, width_px=width_px)
    return np.asarray(picture) < 128


def test_letters_of_other_scripts_are_drawn_and_are_no_boxes() -> None:
    """Where the machine has a font for them, different letters look different, as the box for a missing one never does."""
    if shutil.which("fc-match") is None or system_font("\u0416") is None:
        pytest.skip("no fontconfig, or no Cyrillic font")

    pictures = [drawn(letter * 3) for letter in "\u0416\u0424\u042e"]

    assert all(picture.any() for picture in pictures)
    assert not any((one == other).all() for one, other in itertools.pairwise(pictures))


def test_english_letters_beside_others_look_as_ever() -> None:
    """Fonts for Chinese often lack the Latin alphabet, so each letter is of a font that has it."""
    if shutil.which("fc-match") is None or system_font("\u0416") is None:
        pytest.skip("no fontconfig, or no Cyrillic font")

    assert (drawn("abc \u0416")[:, :28] == drawn("abc i")[:, :28]).all()


def test_without_a_font_letters_lose_their_accents_or_become_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without fontconfig a name is the picture of its plain letters, and of the numbers of those that have none."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert (drawn("M\u00fcnchen \u65e5.jpg") == drawn("Munchen \\u65e5.jpg")).all()


def test_the_end_of_a_long_text_is_shown() -> None:
    """Of a path that is too long, its end stays, and stays within the width."""
    picture = drawn("folder/" * 50 + "a.jpg", 300)

    assert picture[:, 200:].any()
    assert (picture == drawn("folder/" * 60 + "a.jpg", 300)).all()
