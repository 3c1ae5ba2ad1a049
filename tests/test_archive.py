"""Tar archives as sources: members read in place, whatever their names, and damage told."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from dino_extract.errors import SourceError
from dino_extract.source import find_images
from tests.folders import fill, keys_and_contents, make_tar


def test_tar_members_are_read_in_place(tmp_path: Path) -> None:
    """Members of a tar are keyed by their names and read from inside it."""
    path = make_tar(tmp_path / "s.tar", {"b/two.jpg": b"22", "./one.jpg": b"1", "one.txt": b"label"})

    assert keys_and_contents([str(path)]) == {b"b/two.jpg": b"22", b"one.jpg": b"1"}
    assert find_images([str(path)]).file_mtime_ns[0] == 1_500_000_000 * 10**9


def test_members_of_several_tars_follow_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several shards the key is the path of the tar and the member's name."""
    monkeypatch.chdir(tmp_path)
    make_tar(tmp_path / "0.tar", {"a.jpg": b"0"})
    make_tar(tmp_path / "1.tar", {"a.jpg": b"1"})

    assert keys_and_contents(["*.tar"]) == {b"0.tar/a.jpg": b"0", b"1.tar/a.jpg": b"1"}


def test_last_of_equal_members_counts(tmp_path: Path) -> None:
    """Of members with the same name the last one is taken, as tar itself does."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for content in (b"old", b"newer"):
            info = tarfile.TarInfo("a.jpg")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

    assert keys_and_contents([str(path)]) == {b"a.jpg": b"newer"}


def test_dangerous_members_are_left_out(tmp_path: Path) -> None:
    """Absolute names, `..`, links and devices in a tar are counted and not followed."""
    path = make_tar(tmp_path / "s.tar", {"/etc/a.jpg": b"x", "../b.jpg": b"x", "ok.jpg": b"fine"})
    with tarfile.open(path, "a") as archive:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.CHRTYPE), ("f.jpg", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)

    manifest = find_images([str(path)])

    assert manifest.keys == [b"ok.jpg"]
    assert manifest.skipped == {"tar member with an absolute name or `..`": 2, "link or device in a tar": 4}


def test_members_without_a_name_are_left_out(tmp_path: Path) -> None:
    """A regular member called `.`, and one with NUL in its PAX name, are counted."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, pax in ((".", {}), ("nul.jpg", {"path": "n\0ul.jpg"}), ("ok.jpg", {})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 1, pax
            archive.addfile(info, io.BytesIO(b"x"))

    manifest = find_images([str(path)])

    assert manifest.keys == [b"ok.jpg"]
    assert manifest.skipped == {"tar member without a name, or with NUL in it": 2}


def test_odd_names_in_a_tar_survive(tmp_path: Path) -> None:
    """Member names that are not UTF-8 or longer than a header field lead back to their bytes, in GNU and PAX archives."""
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{tar_format}.tar"
        with tarfile.open(path, "w", format=tar_format, encoding="utf-8", errors="surrogateescape") as archive:
            for name in ("caf\udce9.jpg", "d" * 99 + "/" + "n" * 200 + ".jpg", "\u65e5.jpg"):
                info = tarfile.TarInfo(name)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"x"))

        assert find_images([str(path)]).keys == sorted([b"caf\xe9.jpg", b"d" * 99 + b"/" + b"n" * 200 + b".jpg", "\u65e5.jpg".encode()])


def test_cut_tar_gives_what_is_whole_and_a_note(tmp_path: Path) -> None:
    """A tar that ends in the middle of a member gives the members before it, and says so."""
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b"a" * 600, "b.jpg": b"b" * 5000})
    with open(path, "r+b") as file:
        file.truncate(512 + 1024 + 512 + 2000)

    manifest = find_images([str(path)])

    assert manifest.keys == [b"a.jpg"]
    assert any("cut or damaged" in reason for reason in manifest.skipped)
    assert list(manifest.unread) == [b""]


def test_damaged_header_inside_a_tar_is_noted(tmp_path: Path) -> None:
    """A tar with garbage where a header should be is not taken for one that ends there."""
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b"a", "b.jpg": b"b"})
    with open(path, "r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * 512)

    manifest = find_images([str(path)])

    assert manifest.keys == [b"a.jpg"]
    assert any("cut or damaged at byte 1,024" in reason for reason in manifest.skipped)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.zip"])
def test_compressed_archive_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    """An archive that cannot be read in place is an error that says what to give instead."""
    fill(tmp_path, name)

    with pytest.raises(SourceError, match="cannot be read in place"):
        find_images([str(tmp_path / name)])


def test_compressed_tar_under_a_plain_name_is_refused(tmp_path: Path) -> None:
    """A gzipped tar that is called .tar is an error too."""
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))

    with pytest.raises(SourceError, match="not an uncompressed tar archive"):
        find_images([str(tmp_path / "x.tar")])
