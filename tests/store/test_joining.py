"""Files put together: the same rows, in order, and nothing that does not belong together."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dino_extract.errors import StoreError
from dino_extract.status import Status
from dino_extract.store import JoinResult, Layout, join_stores, open_store, open_writer, opening, verify_store
from tests.store.sample import LAYOUT, RAGGED, fate, fill, table


def layout_of(root: str = "/data/photos", layout: Layout = LAYOUT, **attrs: str) -> Layout:
    """The sample's layout for the images of a folder."""
    return replace(layout, attrs={**layout.attrs, "root": root, "sources": json.dumps([root]), **attrs})


def make(path: Path, keys: list[bytes], layout: Layout | None = None, *, mtime_ns: int = 7, limit: int | None = None) -> Path:
    """A store of these keys; not finished where `limit` rows are written only."""
    layout = layout or layout_of()
    with open_writer(path, table(keys, mtime_ns=mtime_ns, is_ragged=layout.is_ragged), layout) as writer:
        fill(writer, layout, limit=limit)
        if limit is None:
            writer.finish()
    return path


def join(files: list[Path], output: Path, **options: bool) -> JoinResult:
    """Join by the sample's signature."""
    return join_stores(files, output, signature=LAYOUT.signature, **options)


@pytest.mark.parametrize("block_nbytes", [4 << 20, 40])
@pytest.mark.parametrize("layout", [LAYOUT, RAGGED], ids=["even", "ragged"])
def test_shards_give_the_file_of_one_run(tmp_path: Path, layout: Layout, block_nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three interleaved parts, one without any image, become the bytes that one run over all writes, in whatever blocks they are copied."""
    monkeypatch.setattr(opening, "COPY_NBYTES", block_nbytes)
    keys = table(40).keys
    parts = [keys[::2], [], keys[1::2]]
    files = [
        make(tmp_path / f"{number}.h5", part, layout_of(layout=layout, shard=f"{number}/3")) for number, part in enumerate(parts, start=1)
    ]

    result = join(files, tmp_path / "all.h5")

    make(tmp_path / "whole.h5", keys, layout_of(layout=layout))
    assert (tmp_path / "all.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert result == JoinResult(str(tmp_path / "all.h5"), 3, 40, sum(fate(key) != Status.OK for key in keys), 0)
    assert sorted(os.listdir(tmp_path)) == ["1.h5", "2.h5", "3.h5", "all.h5", "whole.h5"]


def test_paths_begin_at_the_folder_that_all_lie_in(tmp_path: Path) -> None:
    """Files of two folders and of a tar get the names of these in front of their paths; absolute paths stay as they are."""
    files = [
        make(tmp_path / "a.h5", [b"x.jpg", b"y.jpg"], layout_of("/data/a")),
        make(tmp_path / "b.h5", [b"x.jpg"], layout_of("/data/b/b.tar")),
        make(tmp_path / "c.h5", [b"/else/z.jpg"], layout_of("/data/c")),
    ]

    join(files, tmp_path / "all.h5")

    with open_store(tmp_path / "all.h5") as store:
        assert store.all_paths == ["/else/z.jpg", "a/x.jpg", "a/y.jpg", "b/b.tar/x.jpg"]
        assert store.attrs["root"] == "/data"
        assert json.loads(store.attrs["sources"]) == ["/data/a", "/data/b/b.tar", "/data/c"]
        rows = dict(zip(store.paths, store.features[:], strict=True))
    for file, prefix in zip(files, ["a/", "b/b.tar/", ""], strict=True):
        with open_store(file) as store:
            for path, row in zip(store.paths, store.features[:], strict=True):
                np.testing.assert_array_equal(rows[prefix + path], row)
    assert verify_store(tmp_path / "all.h5").is_intact


def test_of_equal_paths_the_embedded_and_then_the_newer_is_taken(tmp_path: Path) -> None:
    """An image that two files have is there once: embedded rather than failed, else as it was later."""
    keys = table(30).keys
    failed = [key for key in keys if fate(key) != Status.OK]
    good = [key for key in keys if fate(key) == Status.OK]
    make(tmp_path / "old.h5", keys, mtime_ns=7)
    with open_writer(tmp_path / "new.h5", table(keys[:20], mtime_ns=8), layout_of()) as writer:
        fill(writer, fate_of=lambda key: Status.UNREADABLE if key in good[:3] else Status.OK)
        writer.finish()

    result = join([tmp_path / "old.h5", tmp_path / "new.h5"], tmp_path / "all.h5")

    assert result.repeated == 20
    with open_store(tmp_path / "all.h5") as store:
        mtime_of = dict(zip(map(os.fsencode, store.paths), store.file_mtime_ns.tolist(), strict=True))
        assert set(keys) - set(mtime_of) == {key for key in failed if key not in keys[:20]}
    assert {key: mtime_of[key] for key in good[:3]} == dict.fromkeys(good[:3], 7)
    assert {mtime_of[key] for key in keys[:20] if key not in good[:3]} == {8}


def test_rows_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Other settings, missing shards, an unfinished and a damaged file are errors that say what to do, and leave nothing behind."""
    keys = table(20).keys
    good = make(tmp_path / "good.h5", keys)
    other = make(tmp_path / "other.h5", keys, layout_of(preprocess='{"crop": 448, "resize": 512}'))
    shard = make(tmp_path / "shard.h5", keys, layout_of(shard="2/3"))
    make(tmp_path / "unfinished.h5", keys, limit=5)
    damaged = tmp_path / "damaged.h5"
    content = bytearray(good.read_bytes())
    with open_store(good) as store:
        content[store._file["features"].id.get_offset() + 3 * 16] ^= 1
    damaged.write_bytes(content)
    before = sorted(os.listdir(tmp_path))

    for files, message in (
        ([good, other], r"other settings than .*good.h5`:\n  preprocess.crop: the file has 448, the first has 224"),
        ([good, shard], r"of the 3 shards of `/data/photos` 2 are not among the files: 1/3, 3/3"),
        ([good, tmp_path / "unfinished.h5.part"], r"is not finished: 15 of 20 rows are missing"),
        ([good, damaged], rf"1 rows of .*damaged.h5` are damaged, the first is `{keys[3].decode()}`"),
    ):
        with pytest.raises(StoreError, match=message) as caught:
            join(files, tmp_path / "all.h5")
        assert caught.value.hint

    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_that_is_there_is_replaced_only_if_asked(tmp_path: Path) -> None:
    """Without `overwrite` it stays as it is; with it, it may be one of the files that are joined."""
    keys = table(20).keys
    first, second = make(tmp_path / "1.h5", keys[::2]), make(tmp_path / "2.h5", keys[1::2])
    before = first.read_bytes()
    with pytest.raises(StoreError, match=r"1.h5` exists"):
        join([first, second], first)
    assert first.read_bytes() == before

    join([first, second], first, overwrite=True)

    make(tmp_path / "whole.h5", keys)
    assert first.read_bytes() == (tmp_path / "whole.h5").read_bytes()
