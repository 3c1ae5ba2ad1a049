"""The `outliers` command: table, CSV, JSON and contact sheet."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_extract.cli.outliers import outliers
from tests.analysis.stores import write_store
from tests.cli.analysis_app import run_command


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Three images, of which the second is odd."""
    vectors = np.array([[1, 0], [0, 1], [1, 0.1]], np.float32)
    return write_store(tmp_path / "x.h5", ["a.png", "b.png", "c.png"], {"features": vectors}, root=str(tmp_path))


def test_the_table_has_the_most_isolated_first(path: str) -> None:
    """Each line has isolation, share, path and the most similar image."""
    out, _ = run_command(outliers, path, "--neighbours", "1", "--top", "2")

    assert out.splitlines() == [
        "3 images, each compared with all others",
        "isolation  unusual  path  (most like)",
        "   0.9005    66.7%  b.png  (0.0995 c.png)",
        "   0.0050     0.0%  a.png  (0.9950 c.png)",
    ]


def test_another_file_gives_a_count(path: str, tmp_path: Path) -> None:
    """With --against the first line says how many images are rare among those of the other file."""
    usual = write_store(tmp_path / "u.h5", ["x.png", "y.png"], {"features": np.array([[1, 0], [1, 0.1]], np.float32)})

    out, _ = run_command(outliers, path, "--against", usual, "--top", "1")

    assert out.splitlines()[0] == f"1 of 3 images (33.3%) are more isolated than 99% of those of {usual}"


def test_the_csv_has_all_images(path: str, tmp_path: Path) -> None:
    """The table that is written has every image, although fewer are printed."""
    _, err = run_command(outliers, path, "--neighbours", "1", "--top", "1", "-o", str(tmp_path / "x.csv"))

    with open(tmp_path / "x.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["path"] for line in lines] == ["b.png", "a.png", "c.png"]
    assert lines[0] == {"path": "b.png", "isolation": "0.9005", "unusual": "0.6667", "similarity": "0.0995", "nearest": "c.png"}
    assert "3 images" in err


def test_json_has_the_same(path: str) -> None:
    """Machines get the figures and the first images."""
    out, _ = run_command(outliers, path, "--neighbours", "1", "--top", "1", "--json")

    result = json.loads(out)
    assert (result["images"], result["compared_with"], result["rare"]) == (3, 3, 0)
    [first] = result["outliers"]
    assert (first["path"], first["nearest"], round(first["isolation"], 4)) == ("b.png", "c.png", 0.9005)


def test_the_sheet_shows_the_most_isolated(path: str, tmp_path: Path) -> None:
    """The contact sheet has the pictures that are printed, and no others."""
    for name, colour in (("a", "red"), ("b", "lime"), ("c", "blue")):
        Image.new("RGB", (50, 50), colour).save(tmp_path / f"{name}.png")

    _, err = run_command(outliers, path, "--top", "1", "--sheet", str(tmp_path / "sheet.png"))

    colours = {colour for _, colour in Image.open(tmp_path / "sheet.png").getcolors(1 << 20)}
    assert (0, 255, 0) in colours
    assert not {(255, 0, 0), (0, 0, 255)} & colours
    assert "contact sheet" in err
