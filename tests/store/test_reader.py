from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from dino_extract.errors import StoreError
from dino_extract.status import Status
from dino_extract.store import Layout, RaggedRows, RowDataset, Rows, Store, is_store, open_store, open_writer
from tests.store.sample import LAYOUT, RAGGED, fate, fill, row_values, table

OK_KEYS = [key for key in table(40).keys if fate(key) == Status.OK]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 40 images, some of which failed."""
    path = tmp_path_factory.mktemp("store") / "out.h5"
    with open_writer(path, table(40), LAYOUT) as writer:
        fill(writer)
        writer.finish()
    return path


def expected(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """All embedded rows of a dataset."""
    return np.stack([row_values(key, LAYOUT, name, shape) for key in OK_KEYS])


def test_failed_rows_are_left_out(finished: Path) -> None:
    """Paths and rows are those of embedded images, in one order, and failures are listed apart."""
    with open_store(finished) as store:
        assert len(store) == len(OK_KEYS) < 40
        assert store.paths == [os.fsdecode(key) for key in OK_KEYS]
        np.testing.assert_array_equal(store.features[:], expected("features", (8,)))
        np.testing.assert_array_equal(store["layers/9/patch_features"][:], expected("layers/9/patch_features", (2, 3, 4)))
        assert len(store.image_size) == len(OK_KEYS)
        assert len(store.all_paths) == 40
        failed = [key for key in table(40).keys if key not in OK_KEYS]
        assert store.num_failed == len(failed)
        assert [(failure.path, failure.status) for failure in store.failures] == [(os.fsdecode(key), Status.UNREADABLE) for key in failed]
        assert store.failures[0].error == f"decode: DecodeError: {failed[0]!r} is odd"


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        np.int64(7),
        slice(None),
        slice(3, 9),
        slice(None, None, -2),
        slice(5, 5),
        [4, 1, 1, -1],
        np.array([30, 2]),
        [],
        np.arange(36) % 3 == 0,
        ...,
        np.array(3),
        np.array([35, -1], np.int8),
        np.array([35, 0], np.uint8),
    ],
)
def test_rows_are_indexed_like_an_array(finished: Path, index: object) -> None:
    """Numbers, slices, lists and masks give what the same index gives on the array."""
    with open_store(finished) as store:
        found = store.features[index]  # type: ignore[index]

    np.testing.assert_array_equal(found, expected("features", (8,))[index])  # type: ignore[index]


@pytest.mark.parametrize("index", [36, -37, [0, 99], np.ones(3, bool), 1.5, [[1]], True, None, np.True_])
def test_index_outside_the_rows_is_an_error(finished: Path, index: object) -> None:
    """An index that names no row raises, and never gives another row."""
    with open_store(finished) as store, pytest.raises((IndexError, TypeError)):
        store.features[index]  # type: ignore[index]


@pytest.mark.parametrize(
    "index",
    [
        (1, 1),
        (-1, slice(None)),
        (slice(2, 9), 0),
        (slice(None), slice(None), 1, slice(0, 2)),
        ([4, 1], 1),
        ([4, 1, 1], [0, 1, 0], 2),
        (np.arange(36) % 18 == 0, slice(None), [0, 2]),
        (..., 3),
        (),
        (3, ..., 1),
    ],
)
def test_rows_are_indexed_within(finished: Path, index: tuple[object, ...]) -> None:
    """An index with several parts names rows by the first and elements by the others, as on the array."""
    whole = expected("layers/9/patch_features", (2, 3, 4))
    with open_store(finished) as store:
        found = store["layers/9/patch_features"][index]  # type: ignore[index]

    np.testing.assert_array_equal(found, whole[index])


def test_rows_are_read_in_blocks(finished: Path) -> None:
    """Blocks cover all rows once, in order, and say where they start."""
    with open_store(finished) as store:
        blocks = list(store.features.blocks(num_rows=10))
        whole = np.asarray(store.features, dtype=np.float32)

    assert [start for start, _ in blocks] == [0, 10, 20, 30]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)
    assert whole.dtype == np.float32


def test_rows_tell_their_size_before_reading(finished: Path) -> None:
    """Shape, type and bytes are known without a row being read."""
    with open_store(finished) as store:
        rows = store.features
        assert isinstance(rows, Rows)
        assert (rows.shape, rows.dtype, rows.ndim, rows.nbytes, len(rows)) == ((36, 8), np.float16, 2, 36 * 16, 36)
        assert store.names == ("features", "layers/9/patch_features")
        assert store.attrs["model"] == "vits14"


def test_unknown_dataset_is_named(finished: Path) -> None:
    """Asking for tokens that were not kept says what there is."""
    with open_store(finished) as store, pytest.raises(StoreError, match="has no `mean_features`, only features, layers/9/patch_features"):
        _ = store.mean_features


def test_a_store_is_indexed_by_names_of_tokens(finished: Path) -> None:
    """What else the file holds is where the hint says, and a number or a loop over the store is told what to write."""
    with open_store(finished) as store:
        for name in ("paths", "image_size", "file_size", "file_mtime_ns", "status", "error"):
            with pytest.raises(StoreError, match=f"has no `{name}`") as caught:
                store[name]
            assert hasattr(store, str(caught.value.hint).split("`")[1].removeprefix("store."))
        with pytest.raises(TypeError, match=r"rows are `store\['features'\]\[0\]`"):
            list(store)


def test_a_closed_store_says_so(finished: Path) -> None:
    """Datasets and failures of a store that was closed are one sentence, not an error of h5py; closing twice is nothing."""
    store = open_store(finished)
    store.close()
    store.close()

    for read in (lambda: store.features, lambda: store.failures, lambda: store.image_size):
        with pytest.raises(StoreError, match=f"`{finished}` is closed"):
            read()


def test_rows_of_a_closed_store_say_so(finished: Path) -> None:
    """Rows that were taken inside a `with` block and are read behind it are one sentence, not an error of h5py."""
    with open_store(finished) as store:
        rows = store.features

    with pytest.raises(StoreError, match="the file of these rows is closed"):
        rows[:]
    assert repr(rows) == "<Rows features: shape (36, 8), float16>"


def test_stores_and_rows_reach_other_processes(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled, as for the workers of torch's DataLoader, they open the file again, from any working directory."""
    monkeypatch.chdir(finished.parent)
    with open_store(finished.name) as store:
        pickled = pickle.dumps((store, store["layers/9/patch_features"]))
    monkeypatch.chdir("/")

    again, rows = pickle.loads(pickled)

    assert again.paths == [os.fsdecode(key) for key in OK_KEYS]
    np.testing.assert_array_equal(rows[:], expected("layers/9/patch_features", (2, 3, 4)))


def test_ragged_rows_have_the_shape_of_their_image(tmp_path: Path) -> None:
    """Each image's patch tokens come as its own grid (h, w, D)."""
    with open_writer(tmp_path / "out.h5", table(40, is_ragged=True), RAGGED) as writer:
        fill(writer, RAGGED)
        writer.finish()

    with open_store(tmp_path / "out.h5") as store:
        patches = store.patch_features
        assert isinstance(patches, RaggedRows)
        assert len(patches) == len(OK_KEYS)
        for key, grid, found in zip(OK_KEYS, patches.grid_size, patches, strict=True):
            assert found.shape == (*grid, 4)
            np.testing.assert_array_equal(found.reshape(-1, 4), row_values(key, RAGGED, "patch_features", (int(grid.prod()), 4)))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(patches))[-1], patches[len(patches) - 1])
        with pytest.raises(IndexError, match="are read one by one"):
            patches[:2]  # type: ignore[index]
    with pytest.raises(StoreError, match="is closed"):
        patches[0]


def test_run_in_progress_can_be_read(tmp_path: Path) -> None:
    """Before the finished file is there, its name opens the part: committed rows only, and marked unfinished."""
    with open_writer(tmp_path / "out.h5", table(40), LAYOUT) as writer:
        fill(writer, limit=12)
        writer.flush()

        with open_store(tmp_path / "out.h5") as store:
            assert store.paths == [os.fsdecode(key) for key in OK_KEYS if key in table(12).keys]
            assert store.progress == (12, 40)
            assert not store.is_complete
            with pytest.raises(StoreError, match=r"is not finished: 12 of 40 rows"):
                store.require_complete()


def test_names_that_are_not_utf8_open_their_files(tmp_path: Path) -> None:
    """A path read from the store is the name the file system knows."""
    layout = Layout((RowDataset("features", (2,), "float32"),))
    with open_writer(tmp_path / "out.h5", table([b"caf\xe9.jpg"]), layout) as writer:
        writer.write([0], {"features": np.zeros((1, 2))}, image_size=np.ones((1, 2), np.int32))
        writer.finish()

    with open_store(tmp_path / "out.h5") as store:
        assert os.fsencode(store.paths[0]) == b"caf\xe9.jpg"


def edited(finished: Path, folder: Path) -> h5py.File:
    """A copy of a finished store, open for malice."""
    shutil.copy(finished, folder / "evil.h5")
    return h5py.File(folder / "evil.h5", "r+")


def refusal(folder: Path) -> str:
    """What opening the malicious copy says."""
    with pytest.raises(StoreError) as caught:
        open_store(folder / "evil.h5")
    return caught.value.message


def test_external_data_is_refused(finished: Path, tmp_path: Path) -> None:
    """A dataset whose bytes are in another file, such as /etc/passwd, is not read."""
    with edited(finished, tmp_path) as file:
        del file["features"]
        file.create_dataset("features", (40, 8), "f2", external=[("/etc/passwd", 0, 640)])

    assert "dataset `features`" in refusal(tmp_path)
    assert "keeps its data in another file" in refusal(tmp_path)


@pytest.mark.parametrize("place", ["features", "layers/9/more", "unused"])
def test_external_link_is_refused(finished: Path, tmp_path: Path, place: str) -> None:
    """A link into another file is refused wherever it is."""
    with edited(finished, tmp_path) as file:
        if place in file:
            del file[place]
        file[place] = h5py.ExternalLink(str(finished), "/features")

    assert "links to another file" in refusal(tmp_path)


def test_virtual_dataset_is_refused(finished: Path, tmp_path: Path) -> None:
    """A dataset that is a view of other files is refused."""
    with edited(finished, tmp_path) as file:
        del file["features"]
        view = h5py.VirtualLayout((40, 8), "f2")
        view[:] = h5py.VirtualSource(str(finished), "features", shape=(40, 8))
        file.create_virtual_dataset("features", view)

    assert "is virtual" in refusal(tmp_path)


def test_size_that_the_file_does_not_have_is_refused(finished: Path, tmp_path: Path) -> None:
    """Terabytes declared in a small file are refused before anything is allocated, in one piece or in chunks."""
    with edited(finished, tmp_path) as file:
        del file["features"]
        file.create_dataset("features", (40, 10**9), "f4")
    assert "claims 160,000,000,000 bytes" in refusal(tmp_path)

    with edited(finished, tmp_path) as file:
        del file["features"]
        file.create_dataset("features", (40, 10**9), "f4", chunks=(1, 1000))
    assert "claims 160,000,000,000 bytes in chunks" in refusal(tmp_path)


def test_missing_chunks_are_refused(finished: Path, tmp_path: Path) -> None:
    """A chunked dataset with a hole would read as zeros, which nobody computed."""
    with edited(finished, tmp_path) as file:
        del file["features"]
        file.create_dataset("features", (40, 8), "f2", chunks=(10, 8))[:10] = 1

    assert "lacks 3 of its 4 chunks" in refusal(tmp_path)


def test_unknown_filter_is_refused(finished: Path, tmp_path: Path) -> None:
    """Only the filters that every HDF5 has are run."""
    with edited(finished, tmp_path) as file:
        del file["features"]
        file.create_dataset("features", data=np.zeros((40, 8), "i2"), chunks=(10, 8), scaleoffset=2)

    assert "is packed with HDF5 filter 6" in refusal(tmp_path)


@pytest.mark.parametrize("values", [np.array(["x"] * 40, dtype=h5py.string_dtype()), np.zeros((39, 8), "f2"), np.float32(1)])
def test_dataset_of_another_kind_is_refused(finished: Path, tmp_path: Path, values: object) -> None:
    """Text, other row counts and scalars in the place of features are damage, not data."""
    with edited(finished, tmp_path) as file:
        del file["features"]
        file["features"] = values

    assert "header of" in refusal(tmp_path)


def test_link_circle_ends(finished: Path, tmp_path: Path) -> None:
    """Groups that contain themselves do not keep the reader busy for ever."""
    with edited(finished, tmp_path) as file:
        file["layers/circle"] = file["layers"]
        file["alias"] = h5py.SoftLink("/features")

    with open_store(tmp_path / "evil.h5") as store:
        assert len(store.features[:]) == 36


def test_repacked_file_can_be_read(finished: Path, tmp_path: Path) -> None:
    """A store that another program has compressed is still read, row for row."""
    with edited(finished, tmp_path) as file:
        whole = file["features"][:]
        del file["features"]
        file.create_dataset("features", data=whole, chunks=(10, 8), compression="gzip", shuffle=True)

    with open_store(tmp_path / "evil.h5") as store:
        np.testing.assert_array_equal(store.features[:], expected("features", (8,)))


def test_newer_format_is_refused(finished: Path, tmp_path: Path) -> None:
    """A file of a format that this version does not know asks for an update."""
    with edited(finished, tmp_path) as file:
        file.attrs["dino_extract_format"] = 2

    assert "has format 2, this version reads up to 1" in refusal(tmp_path)


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    """A named pipe in the place of the file does not block."""
    os.mkfifo(tmp_path / "out.h5")

    with pytest.raises(StoreError, match="is not a file"):
        open_store(tmp_path / "out.h5")


def test_store_describes_itself(finished: Path) -> None:
    """The representation says how many images and which datasets."""
    with open_store(finished) as store:
        assert isinstance(store, Store)
        assert repr(store) == f"<Store {finished}: 36 images, features, layers/9/patch_features>"


def test_a_file_that_h5py_has_open_can_be_opened(finished: Path) -> None:
    """A notebook that looked into the file with plain h5py can open it as a store as well."""
    with h5py.File(finished) as file, open_store(finished) as store:
        assert len(store.all_paths) == len(file["paths"])


def test_a_file_that_h5py_has_open_is_known_as_a_store(finished: Path, tmp_path: Path) -> None:
    """Whether a file is a store does not depend on who else looks into it; a plain HDF5 file is none."""
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["features"] = np.zeros(3)

    with h5py.File(finished), h5py.File(tmp_path / "plain.h5"):
        assert is_store(str(finished))
        assert not is_store(str(tmp_path / "plain.h5"))
