"""Archives as sources: members are read in place, odd names survive, and damage is reported."""

from __future__ import annotations

import io
import itertools
import os
import random
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from dino_extract.errors import SourceError
from dino_extract.images.containers import ImageError
from dino_extract.images.finding import find_images
from dino_extract.images.reading import read_image_bytes
from dino_extract.status import Status
from tests.folders import fill, keys_and_contents, make_tar, make_zip


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


def test_the_labels_in_a_webdataset_shard_are_left_out(tmp_path: Path) -> None:
    """Labels and texts next to the images of a WebDataset shard are left out and counted."""
    beside = ["cls", "txt", "json", "caption", "url", "index", "pyd", "npy", "pth", "mp", "cbor", "id"]
    members = {f"{number:06}.{suffix}": b"x" for number in range(3) for suffix in ["jpg", "png", "webp", *beside]}

    manifest = find_images([str(make_tar(tmp_path / "s.tar", members))])

    assert len(manifest) == 9
    assert manifest.skipped == {f".{suffix}": 3 for suffix in beside}


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
    """Member names that are not UTF-8, or longer than a header field, keep their bytes in GNU and PAX archives."""
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{tar_format}.tar"
        with tarfile.open(path, "w", format=tar_format, encoding="utf-8", errors="surrogateescape") as archive:
            for name in ("caf\udce9.jpg", "d" * 99 + "/" + "n" * 200 + ".jpg", "\u65e5.jpg"):
                info = tarfile.TarInfo(name)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"x"))

        assert find_images([str(path)]).keys == sorted([b"caf\xe9.jpg", b"d" * 99 + b"/" + b"n" * 200 + b".jpg", "\u65e5.jpg".encode()])


def test_cut_tar_gives_what_is_whole_and_a_note(tmp_path: Path) -> None:
    """A tar that ends in the middle of a member gives the members before it, and the manifest reports the damage."""
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b"a" * 600, "b.jpg": b"b" * 5000})
    with open(path, "r+b") as file:
        file.truncate(512 + 1024 + 512 + 2000)

    manifest = find_images([str(path)])

    assert manifest.keys == [b"a.jpg"]
    assert any("cut or damaged" in reason for reason in manifest.skipped)
    assert list(manifest.unread) == [b""]


def test_damaged_header_inside_a_tar_is_noted(tmp_path: Path) -> None:
    """A tar with garbage in the place of a header is reported as damaged, and does not pass for one that ends there."""
    path = make_tar(tmp_path / "s.tar", {"a.jpg": b"a", "b.jpg": b"b"})
    with open(path, "r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * 512)

    manifest = find_images([str(path)])

    assert manifest.keys == [b"a.jpg"]
    assert any("cut or damaged at byte 1,024" in reason for reason in manifest.skipped)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.7z"])
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


class _Pipe(io.RawIOBase):
    """A file that is written from start to end, such as the output of `zip -`."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: SIM115 - closed by close

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        return self.file.write(content)  # type: ignore[arg-type]

    def close(self) -> None:
        self.file.close()
        super().close()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("in_front", [b"", b"#!/bin/sh\nexit\n"], ids=["plain", "after a script"])
def test_members_of_a_zip_are_what_zipfile_reads(tmp_path: Path, method: int, in_front: bytes) -> None:
    """Stored and deflated members, written to a file or to a pipe, have the bytes that Python's own reader gives."""
    noise = random.Random(0).randbytes(700_000)
    members = {"b/two.jpg": noise, "./one.jpg": b"1" * 2_000_000, "empty.jpg": b"", "one.txt": b"label"}
    for to_pipe in (False, True):
        path = tmp_path / f"{to_pipe}.ZIP"
        target = _Pipe(path) if to_pipe else open(path, "wb")  # noqa: SIM115 - closed by the with below
        with target as file:
            file.write(in_front)
            with zipfile.ZipFile(file, "w", method) as archive:
                archive.writestr("folder.jpg/", b"")
                for name, content in members.items():
                    archive.writestr(zipfile.ZipInfo(name, (2017, 7, 14, 2, 40, 0)), content, compress_type=method)

        with zipfile.ZipFile(path) as archive:
            expected = {os.path.normpath(name).encode(): archive.read(name) for name in members if name.endswith(".jpg")}
        assert keys_and_contents([str(path)]) == expected
        assert find_images([str(path)]).file_mtime_ns[0] == 1_500_000_000 * 10**9


def test_a_zip_among_other_sources_is_named_in_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several sources the key is the path of the zip and the member's name. Archives in a folder are left out and counted."""
    monkeypatch.chdir(fill(tmp_path, "x/a.jpg"))
    make_zip(tmp_path / "x" / "0.zip", {"a.jpg": b"0"})

    assert keys_and_contents(["x/0.zip", "x"]) == {b"x/0.zip/a.jpg": b"0", b"x/a.jpg": b"x/a.jpg"}
    assert find_images(["x"]).skipped == {".zip": 1}


def test_unusable_members_of_a_zip_are_left_out(tmp_path: Path) -> None:
    """Links, unsafe names, encrypted members and other methods are counted. Of equal names the last one is taken."""
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("/etc/a.jpg", "../b.jpg", ".", "__MACOSX/c.jpg", "._d.jpg"):
            archive.writestr(name, b"x")
        archive.writestr("squeezed.jpg", b"x", compress_type=zipfile.ZIP_LZMA)
        link = zipfile.ZipInfo("l.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, b"/etc/passwd")
        archive.writestr("secret.jpg", b"x")
        archive.writestr("ok.jpg", b"old")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("ok.jpg", b"newer")
        archive.getinfo("secret.jpg").flag_bits |= 1  # as the list at the end has it

    manifest = find_images([str(path)])

    assert {manifest[row].key: read_image_bytes(manifest[row]) for row in range(len(manifest))} == {b"ok.jpg": b"newer"}
    assert manifest.skipped == {
        "zip member with an absolute name or `..`": 2,
        "zip member without a name, or with NUL in it": 1,
        "hidden": 2,
        "zip member packed by other means than deflate": 1,
        "link or device in a zip": 1,
        "encrypted zip member": 1,
    }


def test_odd_names_in_a_zip_survive(tmp_path: Path) -> None:
    """UTF-8 names, and names without a stated encoding, become keys unchanged. An invalid UTF-8 name is an error."""
    path = make_zip(tmp_path / "s.zip", {"\u65e5.jpg": b"a", "plain.jpg": b"b", "XXXX.jpg": b"c"})
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"caf\xe9"))  # no flag: what `zip` writes in a Latin-1 locale

    assert keys_and_contents([str(path)]) == {"\u65e5.jpg".encode(): b"a", b"plain.jpg": b"b", b"caf\xe9.jpg": b"c"}

    path.write_bytes(path.read_bytes().replace("\u65e5".encode(), b"\xff\xff\xff"))
    with pytest.raises(SourceError, match="cannot be read as a zip archive"):
        find_images([str(path)])


def test_damage_inside_a_zip_costs_one_image(tmp_path: Path) -> None:
    """A changed byte makes one stored or deflated member fail. The other members are read."""
    content = random.Random(1).randbytes(5000)
    for method, to_pipe in itertools.product((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), (False, True)):
        path = tmp_path / "s.zip"
        with _Pipe(path) if to_pipe else open(path, "wb") as file, zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("a.jpg", b"whole")
            archive.writestr("b.jpg", content)
        whole = path.read_bytes()
        at = whole.index(content[:8] if method == zipfile.ZIP_STORED else b"b.jpg") + 1000
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        manifest = find_images([str(path)])

        assert read_image_bytes(manifest[0]) == b"whole"
        with pytest.raises(ImageError, match="damaged in the zip") as caught:
            read_image_bytes(manifest[1])
        assert caught.value.status == Status.UNREADABLE


def test_a_zip_that_is_cut_is_refused(tmp_path: Path) -> None:
    """A zip without the list at its end, and a file that is not a zip, are errors with a hint."""
    whole = make_zip(tmp_path / "s.zip", {"a.jpg": b"a" * 600}).read_bytes()
    for content in (whole[:-30], whole[:10], b"", b"no zip at all"):
        (tmp_path / "s.zip").write_bytes(content)

        with pytest.raises(SourceError, match="cannot be read as a zip archive") as caught:
            find_images([str(tmp_path / "s.zip")])
        assert "fetch it again" in (caught.value.hint or "")


def test_a_damaged_zip_raises_only_our_errors(tmp_path: Path) -> None:
    """Whatever bytes of a zip change: it is refused, or each image is read or fails alone. No image is longer than listed."""
    rng = random.Random(2)
    path = tmp_path / "s.zip"
    whole = make_zip(path, {f"{number}.jpg": rng.randbytes(40) * number for number in range(4)}).read_bytes()
    refused = failed = read = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(len(whole))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        path.write_bytes(damaged)
        try:
            manifest = find_images([str(path)])
        except SourceError:
            refused += 1
            continue
        for row in range(len(manifest)):
            try:
                assert len(read_image_bytes(manifest[row])) <= manifest[row].size
                read += 1
            except ImageError:
                failed += 1

    assert min(refused, failed, read) > 50


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A member that is longer than its stated size fails before it is unpacked. One with an impossible size is left out."""
    path = make_zip(tmp_path / "s.zip", {"a.jpg": bytes(10_000_000)})
    whole = path.read_bytes()
    size_at = whole.rindex(b"PK\1\2") + 24  # in the list at the end

    path.write_bytes(whole[:size_at] + (100).to_bytes(4, "little") + whole[size_at + 4 :])
    tracemalloc.start()
    with pytest.raises(ImageError, match="its list says 100 bytes"):
        read_image_bytes(find_images([str(path)])[0])
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()

    path.write_bytes(whole[:size_at] + (2**31).to_bytes(4, "little") + whole[size_at + 4 :])
    with pytest.raises(SourceError, match="1 zip member of an impossible size"):
        find_images([str(path)])
