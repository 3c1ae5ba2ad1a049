"""The picture of a run shows its curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dino_extract.finetuning.plot import PANEL_HEIGHT, WIDTH, plot_run


def test_there_is_a_panel_for_each_kind_of_figure(tmp_path: Path) -> None:
    """Losses and kNN give two panels, and the loss curve is drawn in black from high on the left to low on the right."""
    lines = [{"step": step, "loss": 10.0 - step} for step in range(5)] + [{"step": step, "knn": step / 10} for step in range(5)]

    plot_run(lines, tmp_path / "progress.png")

    picture = Image.open(tmp_path / "progress.png")
    assert picture.size == (WIDTH, 2 * PANEL_HEIGHT)
    black = (np.asarray(picture)[40 : PANEL_HEIGHT - 40, 61 : WIDTH - 175] == 0).all(axis=2)
    columns = np.flatnonzero(black.any(axis=0))
    assert black[:, columns[0]].argmax() < black[:, columns[-1]].argmax()


def test_a_run_without_figures_gives_an_empty_picture(tmp_path: Path) -> None:
    """Before the first line of figures there is a white picture and no error."""
    plot_run([], tmp_path / "progress.png")

    assert np.asarray(Image.open(tmp_path / "progress.png")).min() == 255
