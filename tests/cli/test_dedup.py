"""The `dedup` command: groups, lists, leakage and the contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dino_extract.cli.dedup import dedup
from dino_extract.errors import SourceError
from tests.analysis.stores import write_store
from tests.cli.analysis_app import run_command

VECTORS = np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Three images, the first two nearly the same."""
    return write_store(tmp_path / "x.h5", ["a.png", "b.png", "c.png"], {"features": VECTORS}, root=str(tmp_path))


def test_groups_are_listed_with_what_to_keep(path: str) -> None:
    """The group, the kept image and the ladder of thresholds are on stdout."""
    out, _ = run_command(dedup, path)

    assert out.startswith("3 images: 1 groups, 1 images to drop (cosine >= 0.95)")
    assert "keep         a.png\ndrop  1.000  b.png" in out


def test_each_dropped_image_stands_below_the_one_it_resembles(tmp_path: Path) -> None:
    """A chain of four is one group with two kept images, each with what goes for it."""
    angle = np.radians([0, 5, 12, 17])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    path = write_store(tmp_path / "x.h5", ["a.png", "b.png", "c.png", "d.png"], {"features": vectors})

    out, _ = run_command(dedup, path, "--threshold", "0.99")

    assert out.endswith("\n\nkeep         a.png\ndrop  0.996  b.png\nkeep         c.png\ndrop  0.996  d.png\n")


def test_keep_and_drop_lists_divide_the_file(path: str, tmp_path: Path) -> None:
    """Every image is in exactly one of the two lists."""
    run_command(dedup, path, "--keep", str(tmp_path / "keep.txt"), "--drop", str(tmp_path / "drop.txt"))

    assert (tmp_path / "keep.txt").read_text() == "a.png\nc.png\n"
    assert (tmp_path / "drop.txt").read_text() == "b.png\n"


def test_a_list_that_cannot_be_written_is_named(path: str, tmp_path: Path) -> None:
    """A missing folder gives one sentence."""
    with pytest.raises(SourceError, match=r"list `.*drop.txt` cannot be written: No such file"):
        run_command(dedup, path, "--drop", str(tmp_path / "none" / "drop.txt"))


def test_leaks_into_another_file_are_listed(path: str, tmp_path: Path) -> None:
    """With `--against` the shared image and its counterpart are data for machines too."""
    other = write_store(tmp_path / "y.h5", ["z.png"], {"features": VECTORS[2:]})

    out, _ = run_command(dedup, path, "--against", other, "--json")

    assert json.loads(out) == [{"path": "c.png", "other": "z.png", "similarity": pytest.approx(1.0)}]


def test_a_sheet_is_drawn_even_if_the_images_have_gone(path: str, tmp_path: Path) -> None:
    """The contact sheet of groups is written and said where."""
    _, err = run_command(dedup, path, "--sheet", str(tmp_path / "sheet.png"))

    assert (tmp_path / "sheet.png").stat().st_size > 500
    assert "contact sheet of 1 groups" in err
