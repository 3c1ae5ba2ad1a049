"""`match`, `attention`, `pca`, `report`, `export`, `curate` and `classify`: results are not replaced, and long stages are announced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.analysis.stores import blobs, keys_of, write_store
from tests.cli.conftest import Cli
from tests.pictures.picture_store import make_store

TINY = ("--random-weights", "0", "--model", "tiny", "--size", "56")
COMMANDS = {  # command line without the result -> the result
    ("pca", "photos.h5", "-o"): "out",
    ("match", "cats/a.jpg", "dogs/c.jpg", "--file", "photos.h5", "-o"): "match.png",
    ("attention", "photos/cats/a.jpg", *TINY, "-o"): "maps",
    ("report", "photos.h5", "--projection", "pca", "-o"): "page.html",
    ("export", "photos.h5", "-o"): "photos.csv",
    ("curate", "photos.h5", "--images", "3", "-o"): "list.txt",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with photos.h5 of five photographs and their patch tokens."""
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path).close()


@pytest.mark.parametrize(("words", "result"), COMMANDS.items())
def test_a_result_is_replaced_only_with_overwrite(cli: Cli, words: tuple[str, ...], result: str) -> None:
    """A second run is refused and changes nothing; with `--overwrite` it writes the same result again."""
    assert cli(*words, result).code == 0
    before = content(Path(result))

    refused = cli(*words, result)

    assert refused.code == 1
    assert "already there" in refused.err
    assert "`--overwrite` replaces it" in refused.err
    assert content(Path(result)) == before
    assert cli(*words, result, "--overwrite").code == 0
    assert content(Path(result)).keys() == before.keys()


def content(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of each file of a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {str(each): each.read_bytes() for each in files}


@pytest.mark.parametrize(("words", "result"), [item for item in COMMANDS.items() if item[0][0] not in ("export", "curate")])
def test_the_work_is_announced_unless_quiet(cli: Cli, words: tuple[str, ...], result: str) -> None:
    """The first line on stderr says what is being done; `--quiet` leaves stderr empty."""
    assert cli(*words, result).err.splitlines()[0].endswith("...")
    assert cli(*words, result, "--overwrite", "--quiet").err == ""


def test_curate_as_json_lists_the_paths(cli: Cli) -> None:
    """Machines get the chosen paths and the number of images."""
    found = json.loads(cli("curate", "photos.h5", "--images", "2", "--json").out)

    assert len(found["paths"]) == 2
    assert found["images"] == 5


def test_classify_shows_several_labels(cli: Cli) -> None:
    """With `--top 2` each line has two labels with their probabilities, the most probable first."""
    vectors, labels = blobs(3, 6, 16, spread=0.1)
    write_store("classes.h5", keys_of(labels), {"features": vectors})
    assert cli("linear", "classes.h5", "--save", "probe.safetensors").code == 0

    lines = [line.split("\t") for line in cli("classify", "probe.safetensors", "classes.h5", "--top", "2").out.splitlines()]

    assert len(lines) == 18
    assert all(float(line[2]) >= float(line[4]) for line in lines)


def test_a_report_is_coloured_by_the_class_that_knn_takes(cli: Cli) -> None:
    """`--label-depth` names the folder above each image by which the map is coloured, as in `knn`."""
    for split in ("train", "val"):
        for name in ("cats", "dogs"):
            Path("photos", split, name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(Path("photos", split, name, "1.jpg"))
    Path("photos.h5").unlink()
    make_store(Path.cwd(), [f"{split}/{name}/1.jpg" for split in ("train", "val") for name in ("cats", "dogs")]).close()

    for depth, folders in (("1", '"folders":["cats","dogs"]'), ("2", '"folders":["train","val"]')):
        ran = cli("report", "photos.h5", "--projection", "pca", "--label-depth", depth, "-o", f"{depth}.html")
        assert ran.code == 0
        assert folders in Path(f"{depth}.html").read_text()
