"""From manifests to bytes, and from stored keys back to images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dino_extract.errors import SourceError
from dino_extract.images.containers import ImageError, ImageRef
from dino_extract.images.finding import find_images
from dino_extract.images.manifest import manifest_of, resolve
from dino_extract.images.reading import read_image_bytes
from dino_extract.status import Status
from tests.folders import fill, make_tar, make_zip


def test_replaced_archive_gives_no_other_member(tmp_path: Path) -> None:
    """If a tar was replaced since it was listed, its members are VANISHED, whatever is at their places now."""
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b"red", "b.jpg": b"lime"})
    manifest = find_images([str(path)])
    assert read_image_bytes(manifest[0]) == b"red"
    make_tar(tmp_path / "new.tar", {"b.jpg": b"lime", "a.jpg": b"red"}).replace(path)

    for ref in (manifest[0], manifest_of(manifest.root, [manifest[0]])[0]):
        with pytest.raises(ImageError, match="read: the archive was replaced during the run") as caught:
            read_image_bytes(ref)
        assert caught.value.status == Status.VANISHED


def test_changed_image_is_not_found_again(tmp_path: Path) -> None:
    """An image is found again only if its size and time are the same, in a tar too."""
    fill(tmp_path, "a.jpg")
    make_tar(tmp_path / "s.tar", {"b.jpg": b"member"})
    for source in (tmp_path, tmp_path / "s.tar"):
        manifest = find_images([str(source)])
        key, size, mtime_ns = manifest.keys[0], int(manifest.file_size[0]), int(manifest.file_mtime_ns[0])

        assert resolve(manifest.root, key, stamp=(size, mtime_ns)) == manifest[0]
        for stamp in ((size + 1, mtime_ns), (size, mtime_ns + 1)):
            with pytest.raises(SourceError, match="has changed"):
                resolve(manifest.root, key, stamp=stamp)


def test_stored_keys_lead_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root and key find every image again: plain files, members of one archive and of several, relative and absolute."""
    monkeypatch.chdir(fill(tmp_path, "dir.tar/x.jpg", "y.jpg"))
    make_tar(tmp_path / "s.tar", {"a/b.jpg": b"member"})
    make_zip(tmp_path / "s.Zip", {"a/b.jpg": b"packed"})
    for sources in (["dir.tar"], ["s.tar"], ["s.Zip"], ["s.tar", "y.jpg", "dir.tar", "s.Zip"], [str(tmp_path / "s.tar"), "y.jpg"]):
        manifest = find_images(sources)

        assert [resolve(manifest.root, key) for key in manifest.keys] == [manifest[row] for row in range(len(manifest))]


def test_an_archive_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """The list of an archive is read again when the archive changes."""
    path = make_zip(tmp_path / "s.zip", {"a.jpg": b"old"})
    resolve(os.fsencode(path), b"a.jpg")
    make_zip(tmp_path / "new.zip", {"b.jpg": b"newer"}).replace(path)

    assert read_image_bytes(resolve(os.fsencode(path), b"b.jpg")) == b"newer"
    with pytest.raises(SourceError, match=r"`a\.jpg` is no longer in"):
        resolve(os.fsencode(path), b"a.jpg")


def test_key_of_a_lost_image_is_an_error(tmp_path: Path) -> None:
    """The key of a deleted image is an error that names the key and the root."""
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b"1"})

    for root in (tmp_path, path):
        with pytest.raises(SourceError, match=r"`b\.jpg` is no longer in"):
            resolve(os.fsencode(root), b"b.jpg")


def test_known_images_make_a_manifest(tmp_path: Path) -> None:
    """A manifest of resolved images, members of archives included, returns them in their order."""
    fill(tmp_path, "y.jpg")
    make_tar(tmp_path / "s.tar", {"a.jpg": b"member"})
    make_zip(tmp_path / "s.zip", {"a.jpg": b"packed"})
    root = os.fsencode(tmp_path)
    images = [resolve(root, key) for key in (b"s.tar/a.jpg", b"y.jpg", b"s.zip/a.jpg")]

    manifest = manifest_of(root, images)

    assert [manifest[row] for row in range(3)] == images


@pytest.mark.parametrize("change", ["fifo", "folder"])
def test_file_replaced_since_listing_is_unreadable(tmp_path: Path, change: str) -> None:
    """A file that has become a FIFO or a folder fails at once instead of blocking."""
    manifest = find_images([str(fill(tmp_path, "a.jpg"))])
    (tmp_path / "a.jpg").unlink()
    (os.mkfifo if change == "fifo" else os.mkdir)(tmp_path / "a.jpg")

    with pytest.raises(ImageError, match="not a regular file") as caught:
        read_image_bytes(manifest[0])

    assert caught.value.status == Status.UNREADABLE


def test_file_over_the_byte_limit_is_too_large(tmp_path: Path) -> None:
    """A file of more bytes than allowed is refused by its size, sparse or not."""
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(10**12)

    with pytest.raises(ImageError, match="1,000,000,000,000 bytes") as caught:
        read_image_bytes(ImageRef(b"a.jpg", os.fsencode(tmp_path / "a.jpg")))

    assert caught.value.status == Status.TOO_LARGE


def test_shards_are_even_parts_that_do_not_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is in exactly one shard, shards are about equal, and an image stays in its shard when others are added."""
    monkeypatch.chdir(tmp_path)  # how even the parts are depends on the names
    make_tar(tmp_path / "s.tar", {f"{number}.jpg": b"x" for number in range(200)})
    fill(tmp_path, *(f"{number:04}.jpg" for number in range(200)))
    before = find_images([".", "s.tar"])
    fill(tmp_path, *(f"new{number}.jpg" for number in range(100)))
    after = find_images([".", "s.tar"])

    shards = [before.shard(number, 4) for number in range(1, 5)]

    assert sorted(key for shard in shards for key in shard.keys) == before.keys
    assert all(80 <= len(shard) <= 120 for shard in shards)
    for number, shard in enumerate(shards, start=1):
        row_of = {key: row for row, key in enumerate(before.keys)}
        assert [shard[row] for row in range(len(shard))] == [before[row_of[key]] for key in shard.keys]
        assert set(shard.keys) <= set(after.shard(number, 4).keys)
