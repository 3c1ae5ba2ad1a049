"""A new kind of container needs one class and one row in the table."""

from __future__ import annotations

import doctest
import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from dino_extract.images import containers, manifest, reading
from dino_extract.images.containers import Entry, FileFilter, ImageError, ImageRef, opened, read_range, start_of_keys
from dino_extract.images.decoder.wire import pack_request, read_request
from dino_extract.images.finding import find_images
from dino_extract.images.manifest import manifest_of, resolve
from dino_extract.images.reading import read_image_bytes
from dino_extract.status import Status


class Lines:
    """A text file of which each line is an image. The token is the number of the line, counted from 7."""

    kind = "lines"

    def serves(self, path: bytes, mode: int) -> bool:
        """Regular files with the suffix `.lines`."""
        return path.endswith(b".lines") and stat.S_ISREG(mode)

    def entries(self, path: bytes, key: bytes, wanted: FileFilter) -> Iterable[Entry]:
        """One for each line."""
        lines = Path(os.fsdecode(path)).read_bytes().splitlines()
        return [Entry(start_of_keys(key) + b"%d" % number, len(line), 5, number + 7) for number, line in enumerate(lines)]

    def read(self, ref: ImageRef, max_bytes: int) -> bytes:
        """One line."""
        with opened(ref) as (descriptor, info):
            return read_range(descriptor, 0, info.st_size, max_bytes=max_bytes).splitlines()[ref.token - 7]


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The row in the table, and a file that it serves in the working directory."""
    monkeypatch.setattr(reading, "CONTAINERS", (*reading.CONTAINERS, Lines()))
    monkeypatch.setitem(reading.CONTAINER_OF_KIND, Lines.kind, Lines())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.lines").write_bytes(b"one\ntwo\nthree")
    (tmp_path / "b.jpg").write_bytes(b"image")


@pytest.mark.parametrize("sources", [["a.lines"], ["b.jpg", "a.lines"], ["*"]])
def test_images_of_a_new_kind_are_found_and_read(sources: list[str]) -> None:
    """As the only source, among others and through a pattern, its images are listed, read, and found again by their keys."""
    found = find_images(sources)

    refs = [found[row] for row in range(len(found))]
    assert [read_image_bytes(ref) for ref in refs if ref.kind == "lines"] == [b"one", b"two", b"three"]
    assert [resolve(found.root, ref.key) for ref in refs] == refs
    assert [manifest_of(found.root, refs)[row] for row in range(len(refs))] == refs


def test_a_replaced_container_of_a_new_kind_has_vanished(tmp_path: Path) -> None:
    """The check that a container is unchanged holds for every kind that opens a file."""
    found = find_images(["a.lines"])
    (tmp_path / "a.lines").write_bytes(b"other")

    with pytest.raises(ImageError, match="was replaced") as caught:
        read_image_bytes(found[0])

    assert caught.value.status == Status.VANISHED


@pytest.mark.parametrize(
    "ref",
    [
        ImageRef(b"caf\xe9.jpg", b"/photos/caf\xe9.jpg"),
        ImageRef(b"", b"", "", -(2**63), 2**63 - 1, (0, -1)),
        ImageRef(b"a\nb", b"/s.tar", "tar", 512, 99, (10**12, 10**18)),
        ImageRef(b"c", b"https://host/x", "k" * 255, 2**63 - 1, 0, None),
    ],
)
def test_a_request_carries_every_field(ref: ImageRef) -> None:
    """Kind, path, token and stamp of an image reach the decoder process unchanged, with the next request right behind."""
    requests = io.BytesIO(pack_request(ref, is_size_only=True) + pack_request(ref, is_size_only=False))

    assert [read_request(requests) for _ in range(3)] == [(ref, True), (ref, False), None]


def test_examples_in_docstrings_hold() -> None:
    """The examples about keys and paths are true."""
    assert [doctest.testmod(module).failed for module in (containers, manifest)] == [0, 0]
    assert [doctest.testmod(module).attempted > 0 for module in (containers, manifest)] == [True, True]
