"""Results appear whole under their name or not at all, and never in the place of embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_extract.analysis.writing import replacing, writing
from dino_extract.errors import ConfigError
from tests.analysis.stores import write_store


def test_a_result_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """The message names what was to be written and the plain reason."""
    with (
        pytest.raises(ConfigError, match=r"^list `.*none/x.txt` cannot be written: No such file or directory$"),
        writing(tmp_path / "none/x.txt", "list"),
    ):
        (tmp_path / "none/x.txt").write_text("")


def test_only_the_errors_named_are_taken_for_a_failed_write() -> None:
    """A mistake of ours is not told as trouble with a file, unless it is said to mean that."""
    with pytest.raises(KeyError), writing("x", "list"):
        raise KeyError
    with pytest.raises(ConfigError, match="list `x` cannot be written: unknown suffix"), writing("x", "list", also=ValueError):
        raise ValueError("unknown suffix")


@pytest.mark.parametrize("within", [writing, replacing])
def test_a_file_of_embeddings_is_never_opened_for_writing(tmp_path: Path, within: object) -> None:
    """The code that would write does not even begin."""
    path = write_store(tmp_path / "x.h5", ["a.jpg"], {"features": np.ones((1, 4), np.float32)})

    with pytest.raises(ConfigError, match="would replace a file of embeddings"), within(path, "list"):  # type: ignore[operator]
        pytest.fail("it began")


def test_a_result_replaces_another_one_only_when_it_is_whole(tmp_path: Path) -> None:
    """Until the end, and after an error, the earlier result stands; then the new one does, and nothing else is left."""
    path = tmp_path / "x.html"
    path.write_text("earlier")

    def fail() -> None:
        with replacing(path, "page") as partial:
            Path(partial).write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x.html", "earlier")]

    with replacing(path, "page") as partial:
        Path(partial).write_text("whole")
        assert path.read_text() == "earlier"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x.html", "whole")]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it leads to is written, whether that is there already or not."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.html").symlink_to("disk/x.html")

    for text in ("first", "second"):
        with replacing(tmp_path / "x.html", "page") as partial:
            Path(partial).write_text(text)

        assert (tmp_path / "x.html").is_symlink()
        assert [(file.name, file.read_text()) for file in (tmp_path / "disk").iterdir()] == [("x.html", text)]


def test_a_place_that_cannot_be_is_one_sentence_too(tmp_path: Path) -> None:
    """Below a file there is no place for a draft, which is no error of its own."""
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(ConfigError, match=r"page `.*file/x.html` cannot be written: Not a directory$"),
        replacing(tmp_path / "file/x.html", "page") as partial,
    ):
        Path(partial).write_text("")
