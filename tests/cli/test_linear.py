"""The `linear` and `classify` commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dino_extract.cli.linear import classify, linear
from dino_extract.errors import ConfigError
from tests.analysis.stores import blobs, keys_of, write_store
from tests.cli.analysis_app import run_command


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store of three well separated classes with CLS and mean tokens."""
    vectors, labels = blobs(3, 10, 16, spread=0.1)
    return write_store(tmp_path / "photos.h5", keys_of(labels), {"features": vectors, "mean_features": vectors})


def test_candidates_and_accuracy_are_printed(path: str) -> None:
    """The table has a line per input, one of them chosen, and the test accuracy after it."""
    out, _ = run_command(linear, path)

    assert out.splitlines()[1].split()[0] == "cls"
    assert out.splitlines()[1].endswith("chosen")
    assert "top-1 100.00%   top-5 100.00%   mean recall 100.00%   6 test images, 24 training images" in out


def test_a_saved_probe_labels_a_file(path: str, tmp_path: Path) -> None:
    """`linear --save` and `classify` fit together."""
    probe = str(tmp_path / "probe.safetensors")
    run_command(linear, path, "--save", probe)

    out, _ = run_command(classify, probe, path)

    lines = [line.split("\t") for line in out.splitlines()]
    assert all(key.split("/")[0] == label and 0 < float(probability) <= 1 for key, label, probability in lines)
    assert len(lines) == 30


def test_predictions_are_those_of_the_saved_probe_on_the_test_file(path: str, tmp_path: Path) -> None:
    """Of each image of the test file, in which one label is wrong, path, label and what `classify` says of it too."""
    vectors, labels = blobs(3, 4, 16, spread=0.1)
    names = keys_of(labels)
    test = write_store(tmp_path / "test.h5", names, {"features": vectors, "mean_features": vectors})
    (tmp_path / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in zip(names, ["class001", *labels[1:]], strict=True)))
    probe, table = str(tmp_path / "probe.safetensors"), tmp_path / "p.csv"

    run_command(linear, path, test, "--save", probe, "--predictions", str(table), "--test-labels", str(tmp_path / "labels.csv"))

    with open(table, newline="") as file:
        lines = list(csv.DictReader(file))
    out, _ = run_command(classify, probe, test)
    assert (lines[0]["path"], lines[0]["label"]) == (names[0], "class001")
    assert {(line["path"], line["predicted"], f"{float(line['share']):.4f}") for line in lines} == {
        tuple(line.split("\t")) for line in out.splitlines()
    }


def test_json_is_complete(path: str) -> None:
    """Machines get candidates, choice and accuracies."""
    out, _ = run_command(linear, path, "--json", "--dataset", "cls+mean")

    result = json.loads(out)
    assert (result["chosen"]["input"], result["top1"]) == ("cls+mean", 1.0)


def test_images_need_a_probe_on_cls_tokens(path: str, tmp_path: Path) -> None:
    """A probe on several tokens says how to classify images with it."""
    probe = str(tmp_path / "probe.safetensors")
    run_command(linear, path, "--save", probe, "--dataset", "cls+mean")

    with pytest.raises(ConfigError, match="the probe takes features, mean_features, which are not computed for single images"):
        run_command(classify, probe, "new.jpg")
