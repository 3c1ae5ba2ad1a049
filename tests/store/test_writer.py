from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from dino_extract.errors import StoreBusyError, StoreError
from dino_extract.status import Status
from dino_extract.store import Layout, RowDataset, RowTable, disk, open_store, open_writer
from tests.store.sample import LAYOUT, RAGGED, fate, fill, row_values, table, write_rows


def finish(path: Path, layout: Layout = LAYOUT, rows: RowTable | int = 20, **options: bool) -> Path:
    """A finished store."""
    rows = table(rows, is_ragged=layout.is_ragged) if isinstance(rows, int) else rows
    with open_writer(path, rows, layout, **options) as writer:
        fill(writer, layout)
        writer.finish()
    return path


def test_plain_h5py_reads_what_was_written(tmp_path: Path) -> None:
    """A reader that knows only h5py finds paths, features, status, errors, sizes and attributes."""
    path = finish(tmp_path / "out.h5")

    with h5py.File(path) as file:
        paths = file["paths"].asstr()[:].tolist()
        is_ok = np.array([fate(name.encode()) == Status.OK for name in paths])
        assert paths == [f"images/{i:05}.jpg" for i in range(20)]
        for name in ("features", "layers/9/patch_features"):
            dataset = file[name]
            expected = np.stack([row_values(key.encode(), LAYOUT, name, dataset.shape[1:]) for key in paths])
            assert dataset.dtype == expected.dtype
            np.testing.assert_array_equal(dataset[:][is_ok], expected[is_ok])
            assert np.isnan(dataset[:][~is_ok]).all()
        assert (file["status"][:] == np.where(is_ok, Status.OK, Status.UNREADABLE)).all()
        assert [bool(text) for text in file["error"].asstr()[:]] == (~is_ok).tolist()
        assert file["image_size"].shape == (20, 2)
        assert file["row_crc"][:].all()
        assert file.attrs["model"] == "vits14"
        assert file.attrs["dino_extract_format"] == 1


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """Two runs over the same rows give files of equal bytes, whatever the batches and the clock."""
    path = finish(tmp_path / "one.h5")

    time.sleep(1.1)  # HDF5 counts time in seconds
    with open_writer(tmp_path / "two.h5", table(20), LAYOUT) as writer:
        for row in reversed(writer.pending.tolist()):
            write_rows(writer, np.array([row]))
        writer.finish()

    assert (tmp_path / "two.h5").read_bytes() == path.read_bytes()


def test_finished_run_leaves_one_file(tmp_path: Path) -> None:
    """After a finished run, neither the lock nor the part is left."""
    finish(tmp_path / "out.h5")

    assert os.listdir(tmp_path) == ["out.h5"]


def test_part_is_a_readable_file_during_the_run(tmp_path: Path) -> None:
    """While the run goes on, plain h5py opens the part and finds the committed rows."""
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        fill(writer, limit=10)
        writer.flush()

        with h5py.File(writer.part_path, "r") as file:
            committed = np.flatnonzero(file["row_crc"][:])
            first = file["features"][0]

        assert committed.tolist() == list(range(10))
        np.testing.assert_array_equal(first, row_values(b"images/00000.jpg", LAYOUT, "features", (8,)))
        assert not (tmp_path / "out.h5").exists()


def test_rows_are_committed_without_being_asked(tmp_path: Path) -> None:
    """Rows that were handed over are on disk within the commit interval, though nobody flushes."""
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        fill(writer, limit=10)
        for _ in range(100):
            if writer.committed == 10:
                break
            time.sleep(0.05)

        assert writer.committed == 10


def test_leaving_early_keeps_what_was_handed_over(tmp_path: Path) -> None:
    """An exception inside the block commits the rows before it, and the next run has only the rest to do."""

    def interrupted_run() -> None:
        with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
            fill(writer, limit=8)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()

    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as again:
        assert again.reused == 8
        assert again.pending.tolist() == list(range(8, 20))


def test_non_finite_rows_are_marked(tmp_path: Path) -> None:
    """A row with infinity, or a number too large for the stored type, becomes NaN with its own status and a text."""
    layout = Layout((RowDataset("features", (3,), "float16"), RowDataset("mean_features", (2,), "float32")))
    features = np.array([[1, 2, 3], [1, 1e6, 3], [1, 2, 3], [-np.inf, 0, 0], [1, 2, -65504]], np.float32)
    means = np.array([[1, 2], [1, 2], [np.nan, 2], [1, 2], [1, 2]], np.float32)

    with open_writer(tmp_path / "out.h5", table(5), layout) as writer:
        writer.write(range(5), {"features": features, "mean_features": means}, image_size=np.ones((5, 2), np.int32))
        writer.finish()

    with h5py.File(tmp_path / "out.h5") as file:
        assert file["status"][:].tolist() == [1, 5, 5, 5, 1]
        assert np.isnan(file["features"][:]).all(axis=1).tolist() == [False, True, True, True, False]
        assert np.isnan(file["mean_features"][:]).all(axis=1).tolist() == [False, True, True, True, False]
        assert file["error"].asstr()[2] == "model: FloatingPointError: `mean_features` is not finite"


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    """Keys are stored byte for byte, and the longest one whole."""
    keys = sorted([b"caf\xe9.jpg", "größe/ü.png".encode(), b"new\nline", b"x" * 255])

    path = finish(tmp_path / "out.h5", rows=table(keys))

    with h5py.File(path) as file:
        assert file["paths"][:].tolist() == keys


def test_long_error_is_cut_at_a_character(tmp_path: Path) -> None:
    """An error text longer than its 96 bytes loses its end, but never half a character."""
    layout = Layout((RowDataset("features", (2,), "float32"),))

    with open_writer(tmp_path / "out.h5", table(1), layout) as writer:
        writer.write(
            [0], {"features": np.zeros((1, 2))}, image_size=np.zeros((1, 2), np.int32), status=[Status.CRASHED], errors=["ä" * 47 + "€"]
        )
        writer.finish()

    with h5py.File(tmp_path / "out.h5") as file:
        assert file["error"].asstr()[0] == "ä" * 47


def test_ragged_rows_lie_one_after_the_other(tmp_path: Path) -> None:
    """Patches of images of different size are stored flat, with offsets that say which are whose."""
    path = finish(tmp_path / "out.h5", RAGGED)

    with h5py.File(path) as file:
        offsets, grid = file["patch_offsets"][:], file["grid_size"][:]
        np.testing.assert_array_equal(np.diff(offsets), grid.prod(axis=1))
        for row, key in enumerate(file["paths"][:].tolist()):
            patches = file["patch_features"][offsets[row] : offsets[row + 1]]
            if fate(key) == Status.OK:
                np.testing.assert_array_equal(patches, row_values(key, RAGGED, "patch_features", patches.shape))
            else:
                assert np.isnan(patches).all()


def test_no_images_give_an_empty_file(tmp_path: Path) -> None:
    """A store of no rows can be written and read."""
    path = finish(tmp_path / "out.h5", rows=0)

    with h5py.File(path) as file:
        assert file["features"].shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrays": {"features": np.zeros((1, 8))}}, "needs the datasets"),
        ({"arrays": {"features": np.zeros((1, 9)), "layers/9/patch_features": np.zeros((1, 2, 3, 4))}}, "expected \\[\\(1, 8\\)\\]"),
        ({"status": [1, 1]}, "got 2 status"),
        ({"status": [Status.PENDING]}, "cannot be written"),
        ({"rows": [0]}, "not all pending"),
    ],
)
def test_batch_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """A batch of another shape, or for a row that is done, is an error of the caller and changes nothing."""
    arrays = {"features": np.zeros((1, 8)), "layers/9/patch_features": np.zeros((1, 2, 3, 4))}
    good = {"rows": [3], "arrays": arrays, "image_size": np.zeros((1, 2), np.int32)}

    with open_writer(tmp_path / "out.h5", table(5), LAYOUT) as writer:
        fill(writer, limit=1)
        with pytest.raises(ValueError, match=message):
            writer.write(**(good | change))  # type: ignore[arg-type]
        writer.write(**good)  # type: ignore[arg-type]


def test_finish_needs_every_row(tmp_path: Path) -> None:
    """A file with pending rows cannot be published."""
    with open_writer(tmp_path / "out.h5", table(5), LAYOUT) as writer:
        fill(writer, limit=4)
        with pytest.raises(ValueError, match="1 rows are still pending"):
            writer.finish()

    assert not (tmp_path / "out.h5").exists()


def test_row_that_rots_before_the_end_is_not_published(tmp_path: Path) -> None:
    """Finishing reads every row back, and refuses to publish one that is not as it was written; the next run mends it."""
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        fill(writer)
        writer.flush()
        flip_bit(Path(writer.part_path), "features", 3)
        with pytest.raises(StoreError, match=r"1 rows of .* do not read back as they were written, the first is `images/00003.jpg`"):
            writer.finish()

    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as again:
        assert again.pending.tolist() == [3]


def test_file_put_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    """A file that another program puts at the final name during the run stays as it is."""
    path = tmp_path / "out.h5"

    with open_writer(path, table(5), LAYOUT) as writer:
        fill(writer)
        path.write_text("mine")
        with pytest.raises(StoreError, match="another program has put a file"):
            writer.finish()

    assert path.read_text() == "mine"


def flip_bit(path: Path, dataset: str, row: int) -> None:
    """Change one bit of a row on disk."""
    with h5py.File(path, "r", locking=False) as file:
        offset = file[dataset].id.get_offset() + row * file[dataset][0].nbytes
    with path.open("r+b") as raw:
        raw.seek(offset)
        byte = raw.read(1)[0]
        raw.seek(offset)
        raw.write(bytes([byte ^ 4]))


def test_a_second_interrupt_leaves_the_file_to_the_thread_that_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a slow disk is written to, Ctrl-C gives neither the descriptor nor the lock away; afterwards both are free and all is there."""
    may_sync, sync = threading.Event(), disk.fdatasync

    def slow_sync(fd: int) -> None:
        may_sync.wait(30)
        sync(fd)

    monkeypatch.setattr(disk, "fdatasync", slow_sync)
    opening = threading.Timer(0.2, may_sync.set)  # laying out the part syncs as well
    opening.start()
    writer = open_writer(tmp_path / "out.h5", table(20), LAYOUT)
    opening.join()
    may_sync.clear()
    fill(writer)
    assert writer._part is not None
    fd = writer._part.fd

    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the processes of pytest-xdist ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    finally:
        signal.signal(signal.SIGINT, before)
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "out.h5.part"))
    with pytest.raises(StoreBusyError):
        open_writer(tmp_path / "out.h5", table(20), LAYOUT)
    may_sync.set()
    deadline = time.monotonic() + 30
    while os.path.exists(tmp_path / "out.h5.lock") and time.monotonic() < deadline:
        time.sleep(0.01)

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as again:
        assert len(again.pending) == 0


def test_a_link_in_the_place_of_the_file_stays(tmp_path: Path) -> None:
    """A file asked for through a link is begun, continued and replaced where the link points to."""
    (tmp_path / "big").mkdir()
    (tmp_path / "out.h5").symlink_to(tmp_path / "big" / "real.h5")
    with open_writer(tmp_path / "out.h5", table(5), LAYOUT) as writer:
        fill(writer, limit=2)
    with open_store(tmp_path / "out.h5") as store:
        assert store.progress == (2, 5)

    finish(tmp_path / "out.h5", rows=5)
    finish(tmp_path / "out.h5", rows=9)

    assert (tmp_path / "out.h5").is_symlink()
    assert os.listdir(tmp_path / "big") == ["real.h5"]
    assert (tmp_path / "big" / "real.h5").read_bytes() == finish(tmp_path / "plain.h5", rows=9).read_bytes()
