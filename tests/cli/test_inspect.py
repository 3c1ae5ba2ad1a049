"""`info` and `verify` as a user meets them."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import h5py
import pytest

from tests.cli.conftest import Cli
from tests.sample_images import save_pictures

FAST = ["--model", "tiny", "--random-weights", "0", "--size", "28", "--workers", "1", "--dtype", "float32", "-q"]


@pytest.fixture
def photos(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos.h5 of six images, made in the working directory."""
    save_pictures(tmp_path / "photos", range(6))
    monkeypatch.chdir(tmp_path)
    assert cli("embed", "photos", *FAST).code == 0
    return tmp_path / "photos.h5"


def test_info_says_how_the_file_was_made(cli: Cli, photos: Path) -> None:
    """Model, datasets, counts and preprocessing are there as JSON."""
    facts = json.loads(cli("info", "photos.h5", "--json").out)

    assert (facts["model"], facts["rows"], facts["embedded"], facts["complete"]) == ("tiny", 6, 6, True)
    assert facts["datasets"] == {"features": {"dtype": "float16", "shape": [6, 192]}}
    assert facts["preprocessing"]["policy"] == "crop"


@pytest.fixture
def unfinished_update(cli: Cli, photos: Path) -> str:
    """photos.h5, and an update to ten images that ended at the seventh, which is broken. Returns what the run printed."""
    (photos.parent / "photos" / "even" / "0000_broken.png").write_bytes(b"no picture")
    save_pictures(photos.parent / "photos", range(10, 13))
    ran = cli("embed", "photos", *FAST, "--batch", "1", "--max-failures", "0")
    assert ran.code == 1
    return ran.err


def test_info_reports_an_unfinished_update(cli: Cli, photos: Path, unfinished_update: str) -> None:
    """`info` of a finished file shows how far the run is that will replace it, as text and as JSON."""
    facts = json.loads(cli("info", "photos.h5", "--json").out)

    assert (facts["complete"], facts["rows"]) == (True, 6)
    assert facts["update"] == {"done": 7, "rows": 10, "file": "photos.h5.part"}
    assert "update          done 7, rows 10, file photos.h5.part\n" in cli("info", "photos.h5").out
    assert json.loads(cli("info", "photos.h5.part", "--json").out)["update"] is None


@pytest.mark.parametrize("size", [0, 1, 100, 1000, 5000])
def test_info_shows_a_finished_file_whose_update_is_damaged(cli: Cli, photos: Path, unfinished_update: str, size: int) -> None:
    """A truncated part is reported as damaged, and the finished file is shown."""
    os.truncate("photos.h5.part", size)

    ran = cli("info", "photos.h5", "--json")

    assert ran.code == 0
    facts = json.loads(ran.out)
    assert (facts["complete"], facts["rows"], facts["update"]["file"]) == (True, 6, "photos.h5.part")
    assert "`photos.h5.part`" in facts["update"]["error"]


def test_the_hint_lists_the_failures_of_an_update(cli: Cli, photos: Path, unfinished_update: str) -> None:
    """With too many failures the hint names the part, not the finished file."""
    _, _, command = unfinished_update.partition("hint: `dino-extract ")
    words = shlex.split(command.partition("`")[0])

    assert words == ["info", "photos.h5.part", "--failures"]
    assert cli(*words).out.startswith("even/0000_broken.png\tunreadable\t")
    assert cli("info", "photos.h5", "--failures").out == ""


def test_verify_checks_a_run_that_is_not_finished(cli: Cli, photos: Path, unfinished_update: str) -> None:
    """If there is only a part, the name of the target finds it."""
    photos.unlink()

    ran = cli("verify", "photos.h5", "--rows", "0")

    assert ran.code == 0
    assert ran.out == "checksums: 10 rows, 0 damaged, 3 not written yet\n"


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


def test_verify_notices_an_exchanged_image(cli: Cli, photos: Path) -> None:
    """An image with new content but the same size and time no longer gives its stored row."""
    folder = photos.parent / "photos"
    donor, victim = sorted((folder / "odd" / "0003.png", folder / "even" / "0004.png"), key=lambda path: path.stat().st_size)
    before = victim.stat()
    victim.write_bytes(donor.read_bytes().ljust(before.st_size, b"\0"))  # what follows the last chunk of a PNG is not read
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))

    ran = cli("verify", "photos.h5", "--rows", "6")

    assert ran.code == 1
    assert victim.name in ran.out


def test_verify_without_rows_needs_neither_images_nor_model(cli: Cli, photos: Path, tmp_path: Path) -> None:
    """`--rows 0` checks a file whose images were deleted."""
    (tmp_path / "photos").rename(tmp_path / "elsewhere")

    ran = cli("verify", "photos.h5", "--rows", "0")

    assert ran.code == 0
    assert "6 rows, 0 damaged" in ran.out


def test_verify_says_when_the_images_were_deleted(cli: Cli, photos: Path, tmp_path: Path) -> None:
    """Without any image to embed again, one sentence says so and what can still be checked."""
    (tmp_path / "photos").rename(tmp_path / "elsewhere")

    ran = cli("verify", "photos.h5")

    assert ran.code == 1
    assert "none of the 6 images drawn is still at" in ran.err
    assert "--rows 0" in ran.err


def test_terminal_escapes_in_names_are_not_printed_raw(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a line break and an escape sequence is printed on one line, escaped."""
    (tmp_path / "x\ny\x1b[31m").mkdir()
    tmp_path = tmp_path / "x\ny\x1b[31m"
    save_pictures(tmp_path / "photos", [1])
    (tmp_path / "photos" / "a\nb\x1b[31m.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    cli("embed", "photos", *FAST)

    out = cli("info", "photos.h5", "--failures").out

    assert out.startswith("a\\nb\\x1b[31m.png\tunreadable")
    assert "\x1b" not in out
    assert any(line.startswith("root ") and r"x\ny\x1b[31m" in line for line in cli("info", "photos.h5").out.splitlines())
