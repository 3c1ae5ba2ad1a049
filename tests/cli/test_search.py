"""The `search` command: table, JSON, contact sheet and mAP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_extract.cli.search import search
from dino_extract.errors import ConfigError
from tests.analysis.stores import blobs, keys_of, write_store
from tests.cli.analysis_app import run_command


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Three images, the first two nearly the same."""
    vectors = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    return write_store(tmp_path / "x.h5", ["a.png", "b.png", "c.png"], {"features": vectors}, root=str(tmp_path))


def test_the_table_shows_rank_similarity_and_path(path: str) -> None:
    """Each query has its hits below it."""
    out, _ = run_command(search, path, "--path", "a.png", "--top", "2")

    assert [line.split() for line in out.splitlines()] == [
        ["a.png"],
        ["rank", "similarity", "path"],
        ["1", "0.9950", "b.png"],
        ["2", "0.0000", "c.png"],
    ]


def test_a_pattern_searches_for_all_images_that_match(path: str) -> None:
    """`--path` takes patterns as `pca` does, each image once; one that matches nothing is named."""
    out, _ = run_command(search, path, "--path", "[bc].png", "--path", "c.png", "--top", "1", "--json")

    assert [result["query"] for result in json.loads(out)] == ["b.png", "c.png"]
    with pytest.raises(ConfigError, match=r"has no image `x\*`"):
        run_command(search, path, "--path", "x*")


def test_json_has_the_same(path: str) -> None:
    """Machines get the hits of each query."""
    out, _ = run_command(search, path, "--path", "a.png", "--top", "1", "--json")

    [result] = json.loads(out)
    assert (result["query"], result["hits"][0]["path"]) == ("a.png", "b.png")


def test_the_sheet_shows_query_and_hits(path: str, tmp_path: Path) -> None:
    """The contact sheet has the pictures of the query and of what was found."""
    for name, colour in (("a", "red"), ("b", "lime"), ("c", "blue")):
        Image.new("RGB", (50, 50), colour).save(tmp_path / f"{name}.png")

    _, err = run_command(search, path, "--path", "a.png", "--top", "1", "--sheet", str(tmp_path / "sheet.png"))

    colours = {colour for _, colour in Image.open(tmp_path / "sheet.png").getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 255, 0)} <= colours
    assert (0, 0, 255) not in colours
    assert "contact sheet" in err


def test_queries_of_another_file_are_pictures_too(path: str, tmp_path: Path) -> None:
    """The sheet shows the query from where the other file has it; of more than 40 queries it shows the first, and says so."""
    (tmp_path / "other").mkdir()
    for number in range(41):
        Image.new("RGB", (50, 50), (255, 0, number)).save(tmp_path / "other" / f"{number:02}.png")
    other = write_store(
        tmp_path / "y.h5",
        [f"{number:02}.png" for number in range(41)],
        {"features": np.ones((41, 2), np.float32)},
        root=str(tmp_path / "other"),
    )

    _, err = run_command(search, path, other, "--top", "1", "--sheet", str(tmp_path / "sheet.png"))

    colours = {colour for _, colour in Image.open(tmp_path / "sheet.png").getcolors(1 << 20)}
    assert {(255, 0, number) for number in range(40)} <= colours
    assert (255, 0, 40) not in colours
    assert "contact sheet of the first 40 queries" in err


def test_map_is_measured_by_folder(tmp_path: Path) -> None:
    """With `--score` and no query, retrieval of each folder is measured."""
    vectors, labels = blobs(3, 10, 16, spread=0.05)
    path = write_store(tmp_path / "x.h5", keys_of(labels), {"features": vectors})

    out, _ = run_command(search, path, "--score")

    assert out.startswith("mAP 1.0000   first hit right 100.00%   30 queries   chance 0.31")
