"""The `dedup` command: groups, lists, leakage and the contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dino_extract.cli.dedup import dedup
from dino_extract.errors import ConfigError
from tests.analysis.stores import write_store
from tests.cli.analysis_app import run_command

VECTORS = np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Three images, the first two nearly the same."""
    return write_store(tmp_path / "x.h5", ["a.png", "b.png", "c.png"], {"features": VECTORS}, root=str(tmp_path))


def test_groups_are_listed_with_the_image_to_keep(path: str) -> None:
    """The group, the kept image and the ladder of thresholds are on stdout."""
    out, _ = run_command(dedup, path)

    assert out.startswith("3 images: 1 group, 1 image to drop (cosine >= 0.95)")
    assert "keep          a.png\ndrop  1.0000  b.png" in out


def test_each_dropped_image_is_listed_below_its_kept_duplicate(tmp_path: Path) -> None:
    """A chain of four is one group with two kept images, each with what goes for it."""
    angle = np.radians([0, 5, 12, 17])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    path = write_store(tmp_path / "x.h5", ["a.png", "b.png", "c.png", "d.png"], {"features": vectors})

    out, _ = run_command(dedup, path, "--threshold", "0.99")

    assert out.endswith("\n\nkeep          a.png\ndrop  0.9962  b.png\nkeep          c.png\ndrop  0.9962  d.png\n")


def test_a_large_group_is_cut_and_said_to_be_suspicious(tmp_path: Path) -> None:
    """Of a group of 40 out of 50 images 16 are listed, the rest is counted, and a note says that the threshold is probably too low."""
    vectors = np.concatenate([np.ones((40, 16)), np.eye(16)[:10]]).astype(np.float32)
    path = write_store(tmp_path / "x.h5", [f"{number:02}.png" for number in range(50)], {"features": vectors})

    out, err = run_command(dedup, path)

    assert sum(line.startswith(("keep", "drop")) for line in out.splitlines()) == 16
    assert "... 24 more of this group" in out
    assert "one group holds 80% of all images" in err
    assert "`--drop FILE.txt` has everything" in err


@pytest.mark.parametrize("option", ["--keep", "--drop", "--sheet", "--against"])
def test_calibration_refuses_options_that_it_would_ignore(path: str, option: str) -> None:
    """Options that a measurement does not use are refused."""
    with pytest.raises(ConfigError, match="`--calibrate` only measures"):
        run_command(dedup, path, "--calibrate", "2", option, "x")


def test_calibration_is_of_cls_embeddings(tmp_path: Path) -> None:
    """Copies have CLS embeddings alone, so another dataset is refused by name."""
    path = write_store(tmp_path / "x.h5", ["a.png", "b.png"], {"mean_features": np.eye(2, 4, dtype=np.float32)})

    with pytest.raises(ConfigError, match="by `features`, not by `mean_features`"):
        run_command(dedup, path, "--calibrate", "2", "--dataset", "mean_features")


def test_keep_and_drop_lists_divide_the_file(path: str, tmp_path: Path) -> None:
    """Every image is in exactly one of the two lists."""
    run_command(dedup, path, "--keep", str(tmp_path / "keep.txt"), "--drop", str(tmp_path / "drop.txt"))

    assert (tmp_path / "keep.txt").read_text() == "a.png\nc.png\n"
    assert (tmp_path / "drop.txt").read_text() == "b.png\n"


def test_a_list_that_cannot_be_written_is_named(path: str, tmp_path: Path) -> None:
    """A missing folder gives one sentence."""
    with pytest.raises(ConfigError, match=r"list `.*drop.txt` cannot be written: No such file"):
        run_command(dedup, path, "--drop", str(tmp_path / "none" / "drop.txt"))


def test_a_list_of_paths_with_line_breaks_says_that_it_is_not_safe(tmp_path: Path) -> None:
    """`xargs rm` would delete another file by such a list, so the command warns."""
    path = write_store(tmp_path / "x.h5", ["a.png", "a.png\nb.png", "b.png"], {"features": VECTORS[[0, 0, 2]]})

    _, err = run_command(dedup, path, "--drop", str(tmp_path / "drop.txt"), "--keep", str(tmp_path / "keep.txt"))

    assert (tmp_path / "drop.txt").read_text() == "a.png\nb.png\n"
    assert err.count("warning: 1 of the paths have a line break in them") == 1


def test_leaks_into_another_file_are_listed(path: str, tmp_path: Path) -> None:
    """With `--against` the shared image and its counterpart are data for machines too."""
    other = write_store(tmp_path / "y.h5", ["z.png"], {"features": VECTORS[2:]})

    out, _ = run_command(dedup, path, "--against", other, "--json")

    assert json.loads(out) == [{"path": "c.png", "other": "z.png", "similarity": pytest.approx(1.0)}]


def test_a_sheet_is_drawn_even_if_the_images_were_deleted(path: str, tmp_path: Path) -> None:
    """The contact sheet of groups is written and said where, and a note says what it cannot show."""
    _, err = run_command(dedup, path, "--sheet", str(tmp_path / "sheet.png"))

    assert (tmp_path / "sheet.png").stat().st_size > 500
    assert "contact sheet of 1 group:" in err
    assert "note: 2 images moved or deleted since embedding, such as `a.png`; shown as grey tiles" in err
