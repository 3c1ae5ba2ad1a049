from __future__ import annotations

import json
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from dino_extract.store import Layout, RowDataset, RowTable, open_writer
from dino_extract.store.layout import build_skeleton
from dino_extract.store.rows import Column, row_crcs
from tests.store.sample import LAYOUT, RAGGED, fill, table


@pytest.mark.parametrize("layout", [LAYOUT, RAGGED], ids=["even", "ragged"])
def test_planned_size_is_the_size_of_the_file(tmp_path: Path, layout: Layout) -> None:
    """The size told before the run is the finished file's, to the byte."""
    rows = table(50, is_ragged=layout.is_ragged)
    num_patches = 0 if rows.grid_size is None else int(rows.grid_size.prod(axis=1).sum())

    planned = layout.nbytes(50, max(map(len, rows.keys)), num_patches)
    with open_writer(tmp_path / "out.h5", rows, layout) as writer:
        fill(writer, layout)
        writer.finish()

    assert (tmp_path / "out.h5").stat().st_size == planned


def test_terabytes_are_laid_out_in_little_memory() -> None:
    """Planning 100 million rows of patch tokens touches a few pages, in less than a second."""
    layout = Layout((RowDataset("patch_features", (16, 16, 768), "float16"),))
    began = time.monotonic()

    nbytes = layout.nbytes(100_000_000, 100)

    assert nbytes > 39 * 10**12
    assert time.monotonic() - began < 1


def test_row_data_starts_on_a_page() -> None:
    """Large datasets are aligned, so that writing a row never touches a disk page of the metadata."""
    rows = table(5000)

    extents = build_skeleton(LAYOUT, rows).extents

    assert extents["features"].offset % 4096 == extents["layers/9/patch_features"].offset % 4096 == 0


def test_checksum_is_the_crc32_of_a_row_in_stored_order(tmp_path: Path) -> None:
    """A stranger with zlib and h5py finds the same checksum."""
    with open_writer(tmp_path / "out.h5", table(20), LAYOUT) as writer:
        fill(writer)
        writer.finish()

    with h5py.File(tmp_path / "out.h5") as file:
        names = json.loads(file.attrs["row_datasets"])
        assert names == ["features", "layers/9/patch_features", "image_size", "status", "error"]
        for row in range(20):
            # h5py gives texts without their padding
            parts = [file[name][row].ljust(96, b"\0") if name == "error" else file[name][row].tobytes() for name in names]
            assert file["row_crc"][row] == zlib.crc32(b"".join(parts))


def test_checksum_zero_is_stored_as_one() -> None:
    """A row whose CRC is 0 would look uncommitted, and is given 1."""
    no_bytes = Column(memoryview(b""), np.zeros(2, np.int64), 0)  # crc32(b"") is 0

    assert row_crcs([no_bytes]).tolist() == [1]


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"], [b""], [b"a\0b"]])
def test_keys_out_of_order_are_a_bug_of_the_caller(tmp_path: Path, keys: list[bytes]) -> None:
    """Unsorted, repeated or impossible keys do not reach the file."""
    with pytest.raises(AssertionError, match="keys must"):
        open_writer(tmp_path / "out.h5", table(keys), LAYOUT)


def test_grids_are_needed_where_ragged(tmp_path: Path) -> None:
    """A ragged layout without patch grids is a bug of the caller."""
    rows = RowTable([b"a"], np.zeros(1, np.int64), np.zeros(1, np.int64))

    with pytest.raises(AssertionError, match="needs the grid of every image"):
        open_writer(tmp_path / "out.h5", rows, RAGGED)
