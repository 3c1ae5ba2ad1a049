"""`--config FILE.toml` and environment variables: options that need not be typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.sample_images import save_pictures

TOML = """
model = "tiny"
random_weights = 0
size = 28
workers = 1
dtype = "float32"
store-dtype = "float32"
tokens = ["cls", "mean"]
quiet = true
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images and a configuration."""
    save_pictures(tmp_path / "photos", range(2))
    (tmp_path / "run.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def datasets(cli: Cli) -> dict[str, str]:
    """The data type of each dataset of photos.h5."""
    return {name: each["dtype"] for name, each in json.loads(cli("info", "photos.h5", "--json").out)["datasets"].items()}


def test_options_are_read_from_a_file(cli: Cli) -> None:
    """Text, numbers, lists and switches of the file are as if they were typed; names may have dashes or underscores."""
    ran = cli("embed", "photos", "--config", "run.toml")

    assert (ran.code, ran.out, ran.err) == (0, "photos.h5\n", "")
    assert datasets(cli) == {"features": "float32", "mean_features": "float32"}


def test_the_sources_may_be_in_the_file(cli: Cli, folder: Path) -> None:
    """`sources` is the one argument; paths start from the working directory."""
    (folder / "run.toml").write_text(TOML + 'sources = ["photos"]\n')

    assert cli("embed", "--config", "run.toml").out == "photos.h5\n"


def test_the_environment_beats_the_file_and_the_command_line_beats_both(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three values for one option the typed one counts, then the variable, then the file."""
    monkeypatch.setenv("DINO_EXTRACT_EMBED_STORE_DTYPE", "float16")
    monkeypatch.setenv("DINO_EXTRACT_EMBED_TOKENS", "patch")

    assert cli("embed", "photos", "--config", "run.toml", "--tokens", "cls").code == 0

    assert datasets(cli) == {"features": "float16"}


@pytest.mark.parametrize(("variable", "option"), [("JSON", "1"), ("DECODE_TIMEOUT", "20")])
def test_a_variable_is_named_after_its_option(cli: Cli, monkeypatch: pytest.MonkeyPatch, variable: str, option: str) -> None:
    """`--json` is DINO_EXTRACT_EMBED_JSON, whatever the parameter is called."""
    monkeypatch.setenv(f"DINO_EXTRACT_EMBED_{variable}", option)

    assert cli("embed", "photos", "--config", "run.toml", "--dry-run").out.startswith("{") == (variable == "JSON")


@pytest.mark.parametrize("variable", ["CACHE", "OFFLINE", "WEIGHTS_URL", "VERSION"])
def test_other_variables_of_the_program_are_not_options(cli: Cli, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The variables of the weights cache do not collide with those of options."""
    monkeypatch.setenv(f"DINO_EXTRACT_{variable}", "1")

    ran = cli("weights", "list")

    assert ran.out.startswith("name ")


@pytest.mark.parametrize(
    ("content", "error", "hint"),
    [
        ('modle = "tiny"', "configuration `run.toml`: `modle` is not an option", "did you mean `model`?"),
        ("config = 'x'", "configuration `run.toml`: `config` is not an option", "keys are the options of `dino-extract embed`"),
        ("model = tiny", "configuration `run.toml` is not TOML: ", 'for example a line `model = "vitb14"`'),
        ("preprocess = 'resize'", "`preprocess` in the file of `--config` must be crop, squash, pad or native, got `resize`", ""),
        ("batch = -1", "`batch` in the file of `--config` must be a whole number or `auto`, got `-1`", ""),
    ],
)
def test_a_wrong_file_is_one_sentence(cli: Cli, folder: Path, content: str, error: str, hint: str) -> None:
    """The sentence says where the wrong value is, and the nearest right name."""
    (folder / "run.toml").write_text(content)

    ran = cli("embed", "photos", "--config", "run.toml")

    assert ran.code == 2
    assert ran.err.startswith(f"error: {error}")
    assert hint in ran.err


def test_a_wrong_variable_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value in the environment that does not fit is reported with its variable."""
    monkeypatch.setenv("DINO_EXTRACT_EMBED_PREPROCESS", "resize")

    ran = cli("embed", "photos")

    assert ran.code == 2
    assert ran.err.startswith("error: `DINO_EXTRACT_EMBED_PREPROCESS` in the environment must be crop, squash, pad or native, got `resize`")


def test_a_missing_file_is_one_sentence(cli: Cli) -> None:
    """The path and the reason are named."""
    assert (
        cli("embed", "photos", "--config", "none.toml").err
        == "error: configuration `none.toml` cannot be read: No such file or directory\n"
    )
