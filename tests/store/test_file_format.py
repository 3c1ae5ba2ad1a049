from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from dino_extract.status import Status
from dino_extract.store import Layout, RowDataset, RowTable, open_writer

REPOSITORY = Path(__file__).resolve().parents[2]


def write_photos(path: Path) -> None:
    """The store of the session in the document: four images, of which the first is a web page."""
    keys = [b"broken.jpg", "café.jpg".encode(), b"cats/a.jpg", b"cats/b.png"]
    layout = Layout(
        (RowDataset("features", (384,), "float16"), RowDataset("patch_features", (16, 16, 384), "float16")),
        {"model": "vits14", "tokens": "cls,patch"},
    )
    rng = np.random.default_rng(0)
    arrays = {each.name: rng.standard_normal((4, *each.shape)) for each in layout.datasets}
    sizes = np.array([[0, 0], [480, 640], [1080, 1920], [224, 224]], np.int32)
    status = [Status.UNREADABLE, Status.OK, Status.OK, Status.OK]
    errors = ["decode: not an image in a known format", "", "", ""]
    with open_writer(path, RowTable(keys, np.arange(4), np.arange(4)), layout) as writer:
        writer.write(range(4), arrays, image_size=sizes, status=status, errors=errors)
        writer.finish()


def test_session_in_the_document_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The h5py session in docs/file-format.md, checksums included, gives what it shows."""
    write_photos(tmp_path / "photos.h5")
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "docs" / "file-format.md").read_text(encoding="utf-8")
    session = "\n".join(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if block.startswith(">>>"))
    session = session.replace("open('photos.h5', 'rb').read()", "__import__('pathlib').Path('photos.h5').read_bytes()")  # closes the file

    example = doctest.DocTestParser().get_doctest(session, {}, "file-format.md", None, 0)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, clear_globs=False)
    example.globs["f"].close()

    assert runner.tries >= 15
    assert runner.failures == 0


@pytest.mark.parametrize("status", list(Status))
def test_every_status_is_in_the_document(status: Status) -> None:
    """The table of status numbers has a line for each."""
    text = (REPOSITORY / "docs" / "file-format.md").read_text(encoding="utf-8")

    assert re.search(rf"^\| {int(status)} \| ", text, re.MULTILINE)
