"""The `knn` command: what it prints, and where."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dino_extract.cli.knn import knn
from dino_extract.errors import ConfigError
from tests.analysis.stores import blobs, keys_of, write_store
from tests.cli.analysis_app import run_command


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store of three well separated classes."""
    vectors, labels = blobs(3, 10, 16, spread=0.1)
    return write_store(tmp_path / "photos.h5", keys_of(labels), {"features": vectors})


def test_the_table_is_on_stdout_and_notes_on_stderr(path: str) -> None:
    """Accuracies and classes are data; that k was clamped is a note."""
    out, err = run_command(knn, path)

    assert out.splitlines()[0] == "30 images by 30 neighbours, 3 classes"
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["10", "20", "29"]
    assert "per class, k = 20: mean recall 100.00%" in out
    assert "note: k = 100, 200 became 29: there are 30 training images" in err


def test_json_has_the_whole_result(path: str, tmp_path: Path) -> None:
    """The JSON has every score and the confusion matrix, and the picture of it is written."""
    pytest.importorskip("matplotlib")

    out, _ = run_command(knn, path, "--k", "5", "--json", "--confusion", str(tmp_path / "c.png"))

    result = json.loads(out)
    assert result["scores"] == [{"k": 5, "top1": 1.0, "top5": 1.0, "top1_std": 0.0}]
    assert result["confusion"] == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_predictions_begin_with_the_most_confident_errors(tmp_path: Path) -> None:
    """An image with a wrong label is in the first line, and each labelled image is in the table."""
    vectors, labels = blobs(3, 10, 16, spread=0.1)
    names = keys_of(labels)
    path = write_store(tmp_path / "x.h5", names, {"features": vectors}, failed=(4,))
    lines = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    lines[13] = f"{names[13]},class002"  # and not class001
    del lines[7]
    (tmp_path / "labels.csv").write_text("\n".join(lines))

    run_command(knn, path, "--labels", str(tmp_path / "labels.csv"), "--k", "5", "--predictions", str(tmp_path / "p.csv"))

    with open(tmp_path / "p.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert (table[0]["path"], table[0]["label"], table[0]["predicted"]) == (names[13], "class002", "class001")
    assert float(table[0]["share"]) > 0.9
    assert {line["path"] for line in table} == set(names) - {names[4], names[7]}
    assert all(line["predicted"] == line["path"].split("/")[0] for line in table)


def test_k_must_be_numbers(path: str) -> None:
    """A word for k is an error that shows how to write it."""
    with pytest.raises(ConfigError, match="`--k` takes numbers, got `ten`"):
        run_command(knn, path, "--k", "ten")
