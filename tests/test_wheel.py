"""The wheel: installed outside the repository, the package works the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_extract.embedding.pipeline import embed
from dino_extract.store import open_store

REPOSITORY = Path(__file__).parents[1]
COMMAND = "from dino_extract.cli import main; main()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, as pip would unpack it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_installed(installed: Path, *words: str, command: str = COMMAND) -> str:
    """What the installed package prints, far from the repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    ran = subprocess.run([sys.executable, "-c", command, *words], cwd=installed.parent, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_wheel_is_what_is_run(installed: Path) -> None:
    """The other tests are about the wheel, and not about the repository."""
    assert run_installed(installed, command="import dino_extract; print(dino_extract.__file__)").startswith(str(installed))


def test_the_table_and_the_small_model_are_in_it(installed: Path, tmp_path: Path) -> None:
    """`weights list` has every model, and `embed --model tiny` gives the numbers of the repository without a download."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(colours).save(tmp_path / "photos" / "a.png")

    names = {model["name"] for model in json.loads(run_installed(installed, "weights", "list", "--json"))}
    run_installed(
        installed, "embed", str(tmp_path / "photos"), "--model", "tiny", "--device", "cpu", "-o", str(tmp_path / "wheel.h5"), "-q"
    )

    assert {"tiny", "vits14", "vitb14-reg", "vitl14", "vitg14"} <= names
    embed(tmp_path / "photos", tmp_path / "here.h5", model="tiny", device="cpu")
    with open_store(tmp_path / "wheel.h5") as wheel, open_store(tmp_path / "here.h5") as here:
        assert np.array_equal(wheel.features[:], here.features[:])


def test_the_page_is_in_it(installed: Path, tmp_path: Path) -> None:
    """`report` finds the parts of its page."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (80 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    embed(tmp_path / "photos", tmp_path / "x.h5", model="tiny", device="cpu")

    run_installed(installed, "report", str(tmp_path / "x.h5"), "-o", str(tmp_path / "x.html"))

    assert "</html>" in (tmp_path / "x.html").read_text()
