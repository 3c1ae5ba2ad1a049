"""`info` and `verify` as a user meets them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import pytest

from tests.cli.conftest import Cli
from tests.pictures import save_pictures

FAST = ["--model", "tiny", "--random-weights", "0", "--size", "28", "--workers", "1", "--dtype", "float32", "-q"]


@pytest.fixture
def photos(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos.h5 of six pictures, made in the working directory."""
    save_pictures(tmp_path / "photos", range(6))
    monkeypatch.chdir(tmp_path)
    assert cli("embed", "photos", *FAST).code == 0
    return tmp_path / "photos.h5"


def test_info_says_how_the_file_was_made(cli: Cli, photos: Path) -> None:
    """Model, datasets, counts and preprocessing are there as JSON."""
    facts = json.loads(cli("info", "photos.h5", "--json").out)

    assert (facts["model"], facts["rows"], facts["embedded"], facts["complete"]) == ("tiny", 6, 6, True)
    assert facts["datasets"] == {"features": "float16 (6, 192)"}
    assert facts["preprocessing"]["policy"] == "crop"


def test_verify_embeds_rows_again_and_finds_them_equal(cli: Cli, photos: Path) -> None:
    """On the machine that made the file the difference is rounding at most, and the exit code 0."""
    ran = cli("verify", "photos.h5", "--rows", "4", "--json")

    result = json.loads(ran.out)
    assert ran.code == 0
    assert result["recomputed"]["rows"] == 4
    assert result["recomputed"]["max_difference"] < 1e-3


def test_verify_names_the_row_with_a_flipped_bit(cli: Cli, photos: Path) -> None:
    """One bit changed in one row: exit code 1, and that row's path on stdout."""
    with h5py.File(photos) as file:
        offset = file["features"].id.get_offset()
        name = file["paths"].asstr()[2]
    with open(photos, "r+b") as file:
        os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, offset + 2 * 384)[0] ^ 1]), offset + 2 * 384)

    ran = cli("verify", "photos.h5")

    assert ran.code == 1
    assert f"damaged: row 2, {name}" in ran.out


def test_verify_notices_an_image_that_is_another_one_now(cli: Cli, photos: Path) -> None:
    """A picture whose content was exchanged under the same size and time no longer gives its stored row."""
    folder = photos.parent / "photos"
    donor, victim = sorted((folder / "odd" / "0003.png", folder / "even" / "0004.png"), key=lambda path: path.stat().st_size)
    before = victim.stat()
    victim.write_bytes(donor.read_bytes().ljust(before.st_size, b"\0"))  # what follows the last chunk of a PNG is not read
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))

    ran = cli("verify", "photos.h5", "--rows", "6")

    assert ran.code == 1
    assert victim.name in ran.out


def test_verify_without_rows_needs_neither_images_nor_model(cli: Cli, photos: Path, tmp_path: Path) -> None:
    """`--rows 0` checks a file whose pictures are gone."""
    (tmp_path / "photos").rename(tmp_path / "elsewhere")

    ran = cli("verify", "photos.h5", "--rows", "0")

    assert ran.code == 0
    assert "6 rows, 0 damaged" in ran.out


def test_verify_says_when_the_images_are_gone(cli: Cli, photos: Path, tmp_path: Path) -> None:
    """With no picture left to embed again, one sentence says so and what still can be checked."""
    (tmp_path / "photos").rename(tmp_path / "elsewhere")

    ran = cli("verify", "photos.h5")

    assert ran.code == 1
    assert "none of the 6 images drawn is still at" in ran.err
    assert "--rows 0" in ran.err


def test_terminal_escapes_in_names_are_not_printed_raw(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name with a line break and an escape sequence stays on its line and harmless."""
    save_pictures(tmp_path / "photos", [1])
    (tmp_path / "photos" / "a\nb\x1b[31m.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    cli("embed", "photos", *FAST)

    out = cli("info", "photos.h5", "--failures").out

    assert out.startswith("a\\nb\\x1b[31m.png\tunreadable")
    assert "\x1b" not in out
