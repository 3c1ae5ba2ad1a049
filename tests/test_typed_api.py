"""The Python front door as type checkers see it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dino_extract as dx

REPOSITORY = Path(__file__).resolve().parents[1]

GOOD = """
import dino_extract as dx

result = dx.embed("photos/", "photos.h5", model="tiny", tokens="cls,patch", size=224, batch=8, overwrite=True)
failed: int = result.failed
with dx.open("photos.h5") as store:
    paths: list[str] = store.paths
encoder = dx.Encoder("tiny", tokens="cls,mean")
"""

# a line of Python that both checkers must refuse, and why
BAD = {
    "dx.embed('photos/', nonsense=3)": "an option that does not exist",
    "dx.embed('photos/', tokens=3.5)": "a value of the wrong type",
    "dx.embed(1)": "a source that is no path",
    "dx.Encoder('tiny', nonsense=3)": "an option that does not exist",
    "dx.open(3)": "a file that is no path",
    "dx.nothing": "a name that does not exist",
}

# Types of the libraries below us are not looked into: that takes 20 seconds, and they are not what is checked here.
MYPY = """
[mypy]
strict = True
[mypy-torch.*,numpy.*,PIL.*,h5py.*,sklearn.*]
follow_imports = skip
"""


def run_checker(checker: list[str], folder: Path, text: str) -> list[int]:
    """The numbers of the lines, from 1, in which a checker finds an error."""
    snippet = folder / "snippet.py"
    snippet.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MYPYPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-m", *checker, str(snippet)], cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if f"{snippet.name}:" in line and "error" in line]
    assert done.returncode == bool(lines), done.stdout + done.stderr
    return sorted({int(line.split(f"{snippet.name}:")[1].split(":")[0]) for line in lines})


@pytest.fixture(params=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The words that run a type checker on a file; skips where it is not installed."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "mypy":
        (tmp_path / "mypy.ini").write_text(MYPY)
        return ["mypy", "--config-file", "mypy.ini"]
    try:
        subprocess.run([sys.executable, "-m", "pyright", "--version"], capture_output=True, check=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"pyright does not start, it needs a network once: {error}")
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{REPOSITORY}"]}}')
    return ["pyright", "--pythonpath", sys.executable]


def test_correct_calls_pass_and_wrong_ones_are_found(checker: list[str], tmp_path: Path) -> None:
    """A type checker accepts the calls of the README, and refuses a wrong option, a wrong type and a wrong name, each in its line."""
    text = GOOD + "\n".join(BAD) + "\n"
    first = GOOD.count("\n") + 1

    assert run_checker(checker, tmp_path, text) == list(range(first, first + len(BAD)))


def test_every_public_name_is_typed(checker: list[str], tmp_path: Path) -> None:
    """No public name is `Any`: assigning it to a type that it does not have is an error."""
    names = [name for name in dx.__all__ if not name.startswith("_")]
    text = "import dino_extract as dx\n" + "".join(f"x{number}: None = dx.{name}\n" for number, name in enumerate(names))

    assert run_checker(checker, tmp_path, text) == list(range(2, len(names) + 2))
