"""Altered copies of photographs."""

from __future__ import annotations

import pytest
from PIL import Image

from dino_extract.analysis.altered import ALTERATIONS


@pytest.mark.parametrize("kind", list(ALTERATIONS))
@pytest.mark.parametrize("size", [(1, 1), (70_000, 3)])
def test_every_picture_can_be_altered(kind: str, size: tuple[int, int]) -> None:
    """One pixel, or a side longer than JPEG allows: each copy is still a picture in RGB."""
    copy = ALTERATIONS[kind][1](Image.new("RGB", size, "red"))

    assert copy.mode == "RGB"
    assert min(copy.size) >= 1
