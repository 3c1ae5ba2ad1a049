"""`--help` is readable at 80 columns, and a wrong command line is answered in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dino_extract.cli.app import app
from dino_extract.cli.usage import nearest, with_options
from tests.cli.conftest import Cli

COMMANDS = [command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback]
WEIGHTS = ["list", "pull", "verify", "import", "convert", "onnx", "path"]


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS), ["weights"], *(["weights", name] for name in WEIGHTS)])
def test_help_fits_80_columns(cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Every page has lines of at most 80 columns but for examples, without a column of types, and `-h` is the same."""
    monkeypatch.setenv("COLUMNS", "80")

    page = cli(*words, "--help")

    assert (page.code, page.err) == (0, "")
    lines = [line for line in page.out.splitlines() if not line.startswith("  dino-extract ") and not line.startswith("  for ")]
    assert max(map(len, lines)) <= 80
    assert "<" not in page.out.replace(" < ", "")
    assert cli(*words, "-h").out == page.out


def test_an_example_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in the examples is never wrapped, so that it can be copied."""
    monkeypatch.setenv("COLUMNS", "50")

    assert "\n  dino-extract embed photos/ --model vitb14-reg --tokens cls,patch --size 518\n" in cli("embed", "--help").out


def test_help_names_the_expert_options_and_help_all_explains_them(cli: Cli) -> None:
    """`embed --help` explains about twenty options; `--help-all` explains them all."""
    short, long = cli("embed", "--help").out, cli("embed", "--help-all").out

    assert "Expert options:" not in short
    assert "--fast-decode" in short.rpartition("--help-all also explains")[2]
    assert "  --fast-decode " in long.rpartition("Expert options:")[2]


@pytest.mark.parametrize(
    ("words", "same"),
    [(["help"], ["--help"]), (["help", "embed"], ["embed", "--help"]), (["help", "weights", "pull"], ["weights", "pull", "--help"])],
)
def test_help_is_a_command_too(cli: Cli, words: list[str], same: list[str]) -> None:
    """`help COMMAND` is `COMMAND --help`."""
    assert cli(*words) == cli(*same)


def test_without_a_command_the_help_goes_to_stderr(cli: Cli) -> None:
    """`dino-extract` alone is a wrong command line."""
    ran = cli()

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: dino-extract")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["embed", "x", "--modle", "tiny"], "there is no option `--modle`; did you mean `--model`?"),
        (["embde", "x"], "there is no command `embde`; did you mean `embed`?"),
        (["weights", "pul"], "there is no command `pul`; did you mean `pull`?"),
        (["embed", "x", "--xyzzy"], "`dino-extract embed` has no option `--xyzzy`"),
        (["embed", "x", "--preprocess", "resize"], "`--preprocess` must be crop, squash, pad or native, got `resize`"),
        (["verify", "x", "--seed", "-1"], "`--seed` must be at least 0, got `-1`"),
        (["verify", "x", "--seed", "y"], "`--seed` must be a whole number, got `y`"),
        (["embed", "x", "--decode-timeout", "soon"], "`--decode-timeout` must be a number, got `soon`"),
        (["embed", "x", "--batch", "-3"], "`--batch` must be a whole number or `auto`, got `-3`"),
        (["embed", "--model"], "`--model` needs a value"),
        (["info", "x", "--json=1"], "`--json` takes no value"),
        (["info", "a", "b"], "unexpected argument `b`"),
        (["info"], "`FILE.h5` is missing"),
        (["join", "a"], "`--output` is missing"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(cli: Cli, words: list[str], error: str) -> None:
    """The sentence names what is wrong and the nearest right name; the exit code is 2."""
    ran = cli(*words)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[0] == f"error: {error}"


def test_a_missing_argument_is_shown_in_an_example(cli: Cli) -> None:
    """The hint is the first example of the command."""
    assert cli("embed").err.endswith("hint: for example `dino-extract embed photos/`\n")


def test_a_parameter_of_the_library_becomes_an_option(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library says `tokens`, the command says `--tokens`; a value that was typed stays as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()

    assert with_options("`max_pixels` must be above 0, got `size`", {"max_pixels": "--max-pixels", "size": "--size"}) == (
        "`--max-pixels` must be above 0, got `size`"
    )
    assert "`--shard`" in cli("embed", "photos", "--shard", "9/3").err


def test_the_nearest_name_is_one_or_none() -> None:
    """Dashes do not make names similar."""
    assert nearest("--modle", ["--decode", "--model", "--offline"]) == "--model"
    assert nearest("--xyzzy", ["--decode", "--model"]) is None


def test_the_package_runs_as_a_module() -> None:
    """`python -m dino_extract` is the command."""
    ran = subprocess.run([sys.executable, "-m", "dino_extract", "--version"], capture_output=True, text=True, check=True)

    assert ran.stdout.startswith("dino-extract ")


def test_help_loads_no_heavy_library() -> None:
    """`embed --help` and the completion of a model's name load neither torch nor h5py nor numpy."""
    script = (
        "import sys\n"
        "from dino_extract.cli import main\n"
        "from dino_extract.cli.options import model_names\n"
        "sys.argv = ['dino-extract', 'embed', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'tiny' in model_names()\n"
        "assert not {'torch', 'h5py', 'numpy', 'timm'} & sys.modules.keys()\n"
    )

    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_model_names_are_completed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell completes `--model vitb` to the models of that name."""
    monkeypatch.setenv("_DINO_EXTRACT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "dino-extract embed photos --model vitb")
    monkeypatch.setenv("COMP_CWORD", "4")

    assert cli().out.split() == ["vitb14", "vitb14-reg"]
