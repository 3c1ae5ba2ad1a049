"""The analysis commands with wrong input: one sentence, an exit code, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.analysis.stores import blobs, keys_of, write_store
from tests.cli.conftest import Cli
from tests.pictures.picture_store import make_store


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a good file of three classes, and files that cannot be used."""
    monkeypatch.chdir(tmp_path)
    vectors, labels = blobs(3, 10, 16, spread=0.3)
    keys = keys_of(labels)
    write_store("good.h5", keys, {"features": vectors}, root=str(tmp_path))
    write_store("unfinished.h5", keys, {"features": vectors}, limit=7)
    write_store("failed.h5", ["a/1.jpg", "b/1.jpg"], {"features": np.full((2, 16), np.nan, np.float32)}, failed=(0, 1))
    (tmp_path / "patched").mkdir()
    make_store(tmp_path / "patched").close()
    with h5py.File("other.h5", "w") as file:
        file["x"] = np.arange(5)
    Image.new("RGB", (64, 64), "red").save("picture.png")
    Path("text.txt").write_text("hello")
    for name in ("grid.png", "000_picture.png"):
        Path("taken", name).mkdir(parents=True)
    return tmp_path


TINY = ("--random-weights", "0", "--model", "tiny", "--size", "56")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["linear", "unfinished.h5"], "`unfinished.h5.part` is not finished: 7 of 30 rows"),
        (["search", "unfinished.h5", "--score"], "`unfinished.h5.part` is not finished: 7 of 30 rows"),
        (["linear", "failed.h5"], "`failed.h5` holds no embedded image"),
        (["search", "failed.h5", "--score"], "`failed.h5` holds no embedded image"),
        (["knn", "failed.h5"], "`dino-extract info --failures failed.h5` says why"),
        (["knn", "other.h5"], "hint: choose another file\n"),
        (["knn", "good.h5", "--labels", "other.h5"], "hint: give a CSV file, or a dataset of an HDF5 file as `FILE.h5:DATASET`"),
        (["knn", "good.h5", "--labels", "picture.png"], "labels `picture.png` are not text"),
        (["knn", "good.h5", "--confusion", "none/x.png"], "picture `none/x.png` cannot be written: No such file or directory\n"),
        (["knn", "good.h5", "--confusion", "taken"], "picture `taken` cannot be written: Is a directory\n"),
        (["search", "good.h5", "--score", "--sheet", "x.png"], "`--score` only measures: it takes no query, `--path` or `--sheet`\n"),
        (["dedup", "good.h5", "--keep", "x.txt", "--drop", "x.txt"], "`--keep` and `--drop` name one file, `x.txt`\n"),
        (["dedup", "good.h5", "--keep", "./x.txt", "--drop", "x.txt"], "`--keep` and `--drop` name one file, `./x.txt`\n"),
        (["curate", "good.h5", "--images", "3", "--like", "good.h5", "--levels", "9,3"], "`--levels`"),
        (
            ["dedup", "good.h5", "--against", "./good.h5", "--drop", "x.txt"],
            "`--against` is the file itself, `./good.h5`\n",
        ),
        (["outliers", "good.h5", "--against", "./good.h5"], "`--against` is the file itself, `./good.h5`\n"),
        (
            ["match", "a.jpg", "b.jpg", "--file", "good.h5", "--model", "tiny"],
            "a file of embeddings has patch tokens already, so no model is used",
        ),
        (["export", "good.h5", "-o", "good.xlsx"], "cannot export to `.xlsx`\n\nhint: the formats are npy, parquet,"),
        (["cluster", "good.h5", "50"], "30 images of `good.h5` cannot make 50 clusters\n\nhint: ask for 30 or fewer\n"),
        (["curate", "good.h5", "--images", "500"], "got 500\n\nhint: for example 15\n"),
        (
            ["attention", "picture.png", *TINY, "--layer", "12"],
            "`--layer` must be from 0 to 11 for this model, got 12\n\nhint: leave it out for the last\n",
        ),
        (["cluster", "good.h5", "3", "--coarser", "5"], "must be at least 1 and fall from level to level, got 3, 5"),
        (["cluster", "good.h5", "3", "--sheet", "text.txt"], "folder `text.txt` cannot be written: File exists\n"),
        (
            ["search", "good.h5", "--path", "class000/00000.jpg", "--sheet", "x.nope"],
            "contact sheet `x.nope` cannot be written: no picture has the suffix `.nope`",
        ),
        (["search", "good.h5", "--path", "class000/00000.jpg", "--sheet", "none/x.png"], "cannot be written: No such file or directory\n"),
        (["classify", "none", "good.h5"], "there is no classifier `none`"),
        (["classify", "patched", "good.h5"], "there is no classifier `patched`"),
        (["classify", "picture.png", "good.h5"], "`picture.png` is not a classifier of embeddings, or damaged\n"),
        (["pca", "patched/photos.h5", "-o", "text.txt"], "folder `text.txt` cannot be written: File exists\n"),
        (["pca", "patched/photos.h5", "--components", "none"], "there is no file `none` of PCA components\n"),
        (["pca", "patched/photos.h5", "--components", "picture.png"], "`picture.png` holds no PCA components\n"),
        (["attention", "none.png", *TINY], "there is no file `none.png`\n"),
        (["attention", "picture.png", *TINY, "-o", "text.txt"], "folder `text.txt` cannot be written: File exists\n"),
        (["match", "none.png", "picture.png", *TINY], "there is no file `none.png`\n"),
        (["pca", "patched/photos.h5", "-o", "taken"], "picture `taken/grid.png` cannot be written: Is a directory\n"),
        (["attention", "picture.png", *TINY, "-o", "taken"], "picture `taken/000_picture.png` cannot be written: Is a directory\n"),
        (["report", "good.h5", "-o", "taken"], "page `taken` cannot be written: Is a directory\n"),
        (["linear", "good.h5", "--save", "none/x.safetensors"], "classifier `none/x.safetensors` cannot be written: "),
        (["export", "good.h5", "-o", "text.txt/x.csv"], "export `text.txt/x.csv` cannot be written: Not a directory\n"),
        (["match", "picture.png", "picture.png", *TINY, "-o", "none/x.png"], "picture `none/x.png` cannot be written: No such file"),
    ],
)
def test_wrong_input_ends_with_one_sentence(cli: Cli, words: list[str], message: str) -> None:
    """The command ends with 1, prints nothing on stdout, and says what was expected and what came."""
    ran = cli(*words)

    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert "Errno" not in ran.err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_for_people(cli: Cli) -> None:
    """A warning about labels without an image has no line of code, and the command goes on."""
    lines = [f"class00{row // 10}/{row:05}.jpg,{row // 10}" for row in range(20) if row % 2]
    Path("some.csv").write_text("\n".join([*lines, "typo.jpg,1"]))

    ran = cli("knn", "good.h5", "--labels", "some.csv")

    assert ran.code == 0
    assert ("warning: labels `some.csv` have 1 paths that are not images of `good.h5`, such as `typo.jpg`; 20 images") in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ["knn", "--seed", "-1"],
        ["verify", "--seed", "-1"],
        ["linear", "--seed", "-1"],
        ["curate", "--images", "3", "--seed", "-1"],
        ["cluster", "0"],
    ],
)
def test_numbers_below_their_range_are_wrong_usage(cli: Cli, words: list[str]) -> None:
    """A seed below 0 and 0 clusters are refused before any file is opened."""
    command, *rest = words

    ran = cli(command, "missing.h5", *rest)

    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize(
    "words",
    [
        ["cluster", "missing.h5", "3", "-o"],
        ["curate", "missing.h5", "--images", "3", "-o"],
        ["dedup", "missing.h5", "--keep"],
        ["dedup", "missing.h5", "--sheet"],
        ["knn", "missing.h5", "--confusion"],
        ["knn", "missing.h5", "--predictions"],
        ["linear", "missing.h5", "--predictions"],
        ["linear", "missing.h5", "--save"],
        ["linear", "missing.h5", "--confusion"],
        ["outliers", "missing.h5", "-o"],
        ["outliers", "missing.h5", "--sheet"],
        ["search", "missing.h5", "--path", "a.jpg", "--sheet"],
    ],
)
@pytest.mark.parametrize(
    ("target", "reason"),
    [("none/x.png", "No such file or directory"), ("text.txt/x.png", "Not a directory"), ("taken", "Is a directory")],
)
def test_a_result_that_cannot_be_written_is_reported_before_the_work(cli: Cli, words: list[str], target: str, reason: str) -> None:
    """The error comes before the input file is opened, so no work is lost."""
    ran = cli(*words, target)

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith(f"`{target}` cannot be written: {reason}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["dedup", "missing.h5", "--sheet"],
        ["knn", "missing.h5", "--confusion"],
        ["linear", "missing.h5", "--confusion"],
        ["search", "missing.h5", "--path", "a.jpg", "--sheet"],
        ["match", "missing.png", "missing.png", "-o"],
    ],
)
def test_a_suffix_that_is_not_an_image_format_is_reported_before_the_work(cli: Cli, words: list[str]) -> None:
    """The error comes before the input file is opened."""
    ran = cli(*words, "x.nope")

    assert (ran.code, ran.out) == (1, "")
    assert "`x.nope` cannot be written: " in ran.err
    assert "missing" not in ran.err


@pytest.mark.parametrize("words", [["match", "none.png", "picture.png"], ["attention", "none.png"]])
def test_a_missing_image_is_reported_before_the_model_is_loaded(cli: Cli, words: list[str]) -> None:
    """A mistyped name downloads nothing: the missing model is not reported."""
    ran = cli(*words, "--weights", "none.pth")

    assert (ran.code, ran.out) == (1, "")
    assert "there is no file `none.png`" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ["export", "good.h5", "--to", "csv", "--overwrite", "-o"],
        ["export", "good.h5", "--to", "hloc", "--overwrite", "-o"],
        ["report", "good.h5", "-o"],
        ["cluster", "good.h5", "3", "-o"],
        ["curate", "good.h5", "--images", "3", "-o"],
        ["dedup", "good.h5", "--keep"],
        ["dedup", "good.h5", "--sheet"],
        ["knn", "good.h5", "--confusion"],
        ["linear", "good.h5", "--save"],
    ],
)
@pytest.mark.parametrize("target", ["good.h5", "unfinished.h5.part"])
def test_no_result_replaces_a_file_of_embeddings(cli: Cli, words: list[str], target: str) -> None:
    """A mistyped name never deletes a file of embeddings, finished or not."""
    before = Path(target).read_bytes()

    ran = cli(*words, target)

    assert ran.code == 1
    assert f"`{target}` would replace a file of embeddings" in ran.err
    assert Path(target).read_bytes() == before


def test_an_unknown_held_out_accuracy_is_a_dash(cli: Cli) -> None:
    """With one training image of each class there is no held-out image."""
    ran = cli("linear", "good.h5", "--per-class", "1")

    assert ran.code == 0
    assert ran.out.splitlines()[1].split() == ["cls", "1", "-", "chosen"]
