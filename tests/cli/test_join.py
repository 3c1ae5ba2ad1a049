"""`embed --shard` and `join` as a user meets them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.sample_images import save_pictures

FAST = ["--model", "tiny", "--random-weights", "0", "--size", "28", "--workers", "1", "--dtype", "float32", "--batch", "4", "-q"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of twelve images in the working directory."""
    save_pictures(tmp_path / "photos", range(12))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_joined_shards_are_kept_up_to_date_by_a_plain_run(cli: Cli, photos: Path) -> None:
    """Three shards have their own names and join to the bytes of one run. `embed` without `--shard` has nothing to add."""
    for number in (1, 2, 3):
        assert cli("embed", "photos", "--shard", f"{number}/3", *FAST).out == f"photos.{number}-of-3.h5\n"

    ran = cli("join", "photos.3-of-3.h5", "photos.1-of-3.h5", "photos.2-of-3.h5", "-o", "joined.h5", "--json")

    assert json.loads(ran.out) == {"path": "joined.h5", "files": 3, "total": 12, "failed": 0, "repeated": 0}
    assert cli("embed", "photos", *FAST).code == 0
    assert Path("joined.h5").read_bytes() == Path("photos.h5").read_bytes()
    before = Path("joined.h5").stat()
    assert cli("embed", "photos", "-o", "joined.h5", *FAST).code == 0
    assert Path("joined.h5").stat() == before


def test_a_new_image_leaves_the_others_in_their_shards(cli: Cli, photos: Path) -> None:
    """After new images arrive, the shards embed only these, each image once."""
    done = [json.loads(cli("embed", "photos", "--shard", f"{number}/2", "--json", *FAST).out) for number in (1, 2)]
    assert sum(each["total"] for each in done) == 12
    save_pictures(photos, range(12, 18))

    again = [json.loads(cli("embed", "photos", "--shard", f"{number}/2", "--json", *FAST).out) for number in (1, 2)]

    assert [each["reused"] for each in again] == [each["total"] for each in done]
    assert sum(each["embedded"] for each in again) == 6


def test_a_shard_is_not_continued_by_another(cli: Cli, photos: Path) -> None:
    """A run of shard 2, or without shards, refuses a file of shard 1. The error names both."""
    assert cli("embed", "photos", "--shard", "1/2", "-o", "x.h5", *FAST).code == 0

    for options, wanted in (["--shard", "2/2"], "2/2"), ([], "nothing"):
        ran = cli("embed", "photos", "-o", "x.h5", *options, *FAST)
        assert (ran.code, f"shard: the file has 1/2, you asked for {wanted}" in ran.err) == (1, True)


def test_info_names_the_shard(cli: Cli, photos: Path) -> None:
    """`info` of a shard names it. For other files the value is null."""
    for options, shard in (["--shard", "2/2", "-o", "a.h5"], "2/2"), (["-o", "b.h5"], None):
        assert cli("embed", "photos", *options, *FAST).code == 0
        assert json.loads(cli("info", options[-1], "--json").out).get("shard") == shard


@pytest.mark.parametrize("folder", ["photos", "my photos"])
def test_a_shard_says_how_to_join(cli: Cli, photos: Path, folder: str) -> None:
    """The command that a run of a shard prints joins all shards, for any name of the folder."""
    photos.rename(folder)
    for number in (1, 2):
        ran = cli("embed", folder, "--shard", f"{number}/2", *FAST[:-1])
    command = re.search(r"next, when all shards are done: dino-extract (join .*)", ran.err)
    assert command

    words = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in shlex.split(command[1])]

    assert cli(*(name for names in words for name in names)).out == f"{folder}.h5\n"
