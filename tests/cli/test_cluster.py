"""The `cluster` and `curate` commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_extract.cli.cluster import cluster, curate
from dino_extract.errors import ConfigError
from dino_extract.pictures.strips import TILE_PX
from tests.analysis.stores import blobs, keys_of, write_store
from tests.cli.analysis_app import run_command


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store of three well separated classes."""
    vectors, labels = blobs(3, 10, 16, spread=0.1)
    return write_store(tmp_path / "photos.h5", keys_of(labels), {"features": vectors}, root=str(tmp_path))


def test_clusters_are_described(path: str) -> None:
    """Agreement with the folders and a line per cluster are on stdout."""
    out, _ = run_command(cluster, path, "3")

    assert out.splitlines()[0] == "3 clusters of 30 images   purity 100.00%   NMI 1.0000"
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["10", "10", "10"]


def test_the_csv_has_every_image_at_every_level(path: str, tmp_path: Path) -> None:
    """Path, cluster of each level and similarity, a line per image."""
    run_command(cluster, path, "6", "--coarser", "3", "-o", str(tmp_path / "c.csv"))

    with open(tmp_path / "c.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["path", "cluster6", "cluster3", "similarity"]
    assert len(lines) == 30
    assert all(len({line["cluster3"] for line in lines if line["path"].startswith(f"class00{code}")}) == 1 for code in range(3))


def test_a_path_that_would_be_a_formula_is_marked(tmp_path: Path) -> None:
    """It gets `./` in front, which names the same file, and numbers stay numbers."""
    path = write_store(tmp_path / "x.h5", ["=1.jpg", "a.jpg"], {"features": np.eye(2, 4, dtype=np.float32)})

    run_command(cluster, path, "1", "-o", str(tmp_path / "c.csv"))

    assert (tmp_path / "c.csv").read_text() == '"path","cluster1","similarity"\n"./=1.jpg",0,0.7071\n"a.jpg",0,0.7071\n'


def test_json_says_which_image_is_in_which_cluster(tmp_path: Path) -> None:
    """A failed image has no cluster, and those after it keep theirs."""
    vectors = np.array([[1, 0], [9, 9], [0, 1], [0, 1]], np.float32)
    path = write_store(tmp_path / "x.h5", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], {"features": vectors}, failed=(1,))

    out, _ = run_command(cluster, path, "2", "--json")

    [level] = json.loads(out)
    assert dict(zip(level["paths"], level["codes"], strict=True)) == {"a.jpg": 1, "c.jpg": 0, "d.jpg": 0}
    assert level["similarity"] == pytest.approx([1, 1, 1])


def test_a_sheet_is_drawn_for_each_cluster_and_one_for_all(path: str, tmp_path: Path) -> None:
    """The folder has a picture of each cluster, and one with a line of eight images of each."""
    _, err = run_command(cluster, path, "3", "--sheet", str(tmp_path / "sheets"))

    assert sorted(each.name for each in (tmp_path / "sheets").iterdir()) == [
        *(f"cluster-{number:04}.png" for number in range(3)),
        "clusters.png",
    ]
    assert "contact sheet of each of 3 clusters, and `clusters.png` of all" in err
    with Image.open(tmp_path / "sheets" / "clusters.png") as sheet:
        [grey] = [count for count, colour in sheet.getcolors(1 << 20) if colour == (211, 211, 211)]  # the images themselves are not there
        assert 0.8 < grey / (3 * 8 * TILE_PX**2) < 1


def test_sheets_of_an_earlier_run_with_more_clusters_are_removed(path: str, tmp_path: Path) -> None:
    """After a run with two clusters, the folder has no sheet of the third one that the run before made, and what is not ours stays."""
    run_command(cluster, path, "3", "--sheet", str(tmp_path / "sheets"))
    (tmp_path / "sheets" / "cluster-notes.png").touch()

    run_command(cluster, path, "2", "--sheet", str(tmp_path / "sheets"), "--overwrite")

    names = sorted(each.name for each in (tmp_path / "sheets").iterdir())
    assert names == ["cluster-0000.png", "cluster-0001.png", "cluster-notes.png", "clusters.png"]


def test_curated_paths_are_printed_or_written(path: str, tmp_path: Path) -> None:
    """The same paths go to stdout or into the file."""
    out, _ = run_command(curate, path, "--images", "9")

    run_command(curate, path, "--images", "9", "-o", str(tmp_path / "list.txt"))

    assert (tmp_path / "list.txt").read_text() == out
    assert len(out.splitlines()) == 9


def test_levels_must_be_numbers(path: str) -> None:
    """A word for a level is an error that shows how to write it."""
    with pytest.raises(ConfigError, match="`--coarser` takes numbers, got `few`"):
        run_command(cluster, path, "3", "--coarser", "few")


def test_no_result_is_replaced_without_overwrite(path: str, tmp_path: Path) -> None:
    """An existing file, such as a report, is refused before the work and stays as it is; with `--overwrite` it is replaced."""
    page = tmp_path / "report.html"
    page.write_text("a page")

    with pytest.raises(ConfigError, match="is already there"):
        run_command(cluster, path, "3", "-o", str(page))

    assert page.read_text() == "a page"
    run_command(cluster, path, "3", "-o", str(page), "--overwrite")
    assert page.read_text().startswith('"path"')


def test_the_number_of_clusters_may_be_left_out(path: str) -> None:
    """30 images are divided into four clusters, about the root of half their number."""
    out, _ = run_command(cluster, path)

    assert out.startswith("4 clusters of 30 images")
