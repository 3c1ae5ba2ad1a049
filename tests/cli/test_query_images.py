"""Commands that embed images of their own, to compare them with a file: `search`, `classify`, `dedup --calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Cli

FAST = ["--model", "tiny", "--random-weights", "0", "--size", "28", "--workers", "1", "-q"]


@pytest.fixture
def photos(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos.h5 of eight smooth pictures in two classes, made in the working directory."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "photos" / ("red" if number < 4 else "blue") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        noise[..., 0 if number < 4 else 2] = 255
        Image.fromarray(noise).resize((60, 60), Image.Resampling.BICUBIC).save(path)
    monkeypatch.chdir(tmp_path)
    assert cli("embed", "photos", *FAST).code == 0
    return tmp_path / "photos"


def test_a_query_image_finds_itself_first(cli: Cli, photos: Path) -> None:
    """An image file, embedded like the file, is its own nearest neighbour with cosine 1; the contact sheet is drawn."""
    (result,) = json.loads(cli("search", "photos.h5", "photos/red/2.png", "--top", "3", "--sheet", "sheet.png", "--json").out)

    assert result["hits"][0]["path"] == "red/2.png"
    assert result["hits"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert len(result["hits"]) == 3
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 100


def test_a_missing_query_image_is_one_sentence(cli: Cli, photos: Path) -> None:
    """A query that does not exist ends with exit code 1 and a sentence."""
    ran = cli("search", "photos.h5", "nowhere.png")

    assert ran.code == 1
    assert "`nowhere.png` cannot be read" in ran.err


@pytest.mark.parametrize("command", ["search", "classify"])
def test_a_broken_query_image_is_named_and_costs_the_others_nothing(cli: Cli, photos: Path, command: str) -> None:
    """The good image is answered, the broken one is named with its reason, and the exit code says that something failed."""
    Path("broken.jpg").write_bytes(b"not an image")
    file = "photos.h5"
    if command == "classify":
        file = "probe.safetensors"
        assert cli("linear", "photos.h5", "--save", file).code == 0

    ran = cli(command, file, "broken.jpg", "photos/red/2.png")

    assert ran.code == 3
    assert ran.out.startswith("photos/red/2.png")
    assert "broken.jpg" not in ran.out
    assert "left out: broken.jpg: decode: " in ran.err


def test_a_saved_classifier_labels_image_files(cli: Cli, photos: Path) -> None:
    """A probe trained on the file gives each of its images, read anew, one of the two labels."""
    assert cli("linear", "photos.h5", "--save", "probe.safetensors").code == 0

    ran = cli("classify", "probe.safetensors", "photos/red/0.png", "photos/blue/7.png")

    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert ran.code == 0
    assert [row[0] for row in rows] == ["photos/blue/7.png", "photos/red/0.png"]
    assert {row[1] for row in rows} <= {"red", "blue"}


def test_a_store_without_suffix_is_taken_for_one(cli: Cli, photos: Path) -> None:
    """`search` and `classify` know a file of embeddings by what it begins with, whatever its name."""
    assert cli("linear", "photos.h5", "--save", "probe.safetensors").code == 0
    Path("photos.h5").rename("a")

    found = json.loads(cli("search", "a", "a", "--json").out)
    labelled = cli("classify", "probe.safetensors", "a")

    assert [result["query"] for result in found][:2] == ["blue/4.png", "blue/5.png"]
    assert (labelled.code, len(labelled.out.splitlines())) == (0, 8)


def test_calibration_measures_altered_copies_of_the_file_s_own_images(cli: Cli, photos: Path) -> None:
    """`dedup --calibrate` embeds altered copies and gives a recall between 0 and 1 for each threshold, falling with it."""
    steps = json.loads(cli("dedup", "photos.h5", "--calibrate", "4", "--json").out)

    re_encoded = [step["recall"]["re-encode"] for step in steps]
    assert all(0 <= recall <= 1 for recall in re_encoded)
    assert re_encoded == sorted(re_encoded, reverse=True)
    assert re_encoded[0] > 0.5


def test_calibration_explains_its_columns(cli: Cli, photos: Path) -> None:
    """A line for each threshold with a share for each change and for other images; what was done and what to do next are on stderr."""
    ran = cli("dedup", "photos.h5", "--calibrate", "100")

    assert ran.out.splitlines()[1].split() == ["threshold", "crop", "re-encode", "resize", "flip", "colour", "another", "one"]
    assert all(len(line.split()) == 7 for line in ran.out.splitlines()[2:])
    assert "8 of 8 images, a copy of each altered in 5 ways" in ran.err
    assert "dino-extract dedup photos.h5 --threshold T --sheet groups.png" in ran.err
