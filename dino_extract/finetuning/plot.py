"""The figures of a run as one image, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dino_extract.files import replace_atomically
from dino_extract.finetuning.meter import TERMS

WIDTH, PANEL_HEIGHT, MARGIN = 900, 260, 60  # pixels
PANELS = (
    ("loss", ("loss",)),
    ("terms of the loss", TERMS),
    ("weighted kNN accuracy, share of neighbours kept", ("knn", "neighbour_overlap")),
    ("effective rank", ("effective_rank",)),
)
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito: distinguishable with any colour vision

Points = list[tuple[float, float]]


def plot_run(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG with one panel for each kind of figure that is there.

    Args:
        lines: figures as in `metrics.jsonl`.
        path: of the image.
    """
    panels = []
    for title, names in PANELS:
        curves = {name: _points(lines, name) for name in names}
        shown = {name: points for name, points in curves.items() if points and any(y for _, y in points)}
        if shown:
            panels.append((title, shown))
    picture = Image.new("RGB", (WIDTH, max(len(panels), 1) * PANEL_HEIGHT), "white")
    for index, (title, shown) in enumerate(panels):
        _draw_panel(ImageDraw.Draw(picture), index * PANEL_HEIGHT, title, shown)
    with replace_atomically(path, "plot", overwrite=True) as draft:
        picture.save(draft, "PNG")


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> Points:
    return [(line["step"], line[name]) for line in lines if name in line and math.isfinite(line[name])]


def _draw_panel(draw: ImageDraw.ImageDraw, top: int, title: str, curves: Mapping[str, Points]) -> None:
    everything = [point for points in curves.values() for point in points]
    low_x, high_x = min(x for x, _ in everything), max(x for x, _ in everything)
    low_y, high_y = min(y for _, y in everything), max(y for _, y in everything)
    frame = (MARGIN, top + 30, WIDTH - 170, top + PANEL_HEIGHT - 30)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            frame[0] + (x - low_x) / ((high_x - low_x) or 1) * (frame[2] - frame[0]),
            frame[3] - (y - low_y) / ((high_y - low_y) or 1) * (frame[3] - frame[1]),
        )

    font = ImageFont.load_default()
    draw.rectangle(frame, outline="#bbbbbb")
    draw.text((MARGIN, top + 10), title, fill="black", font=font)
    for y in (low_y, high_y):
        draw.text((5, place(low_x, y)[1] - 6), f"{y:.4g}", fill="black", font=font)
    for x in (low_x, high_x):
        draw.text((place(x, low_y)[0] - 10, frame[3] + 6), f"{x:g}", fill="black", font=font)
    for row, (colour, (name, points)) in enumerate(zip(COLOURS, curves.items(), strict=False)):
        draw.line([place(x, y) for x, y in points], fill=colour, width=2)
        for x, y in points[-1:]:
            draw.ellipse([value - 3 for value in place(x, y)] + [value + 3 for value in place(x, y)], fill=colour)
        draw.text((frame[2] + 10, frame[1] + 16 * row), f"{name} {points[-1][1]:.4g}", fill=colour, font=font)
