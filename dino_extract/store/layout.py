"""What a store looks like before its first row is written: datasets, attributes, and where in the file each of them lies."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dino_extract.store.sparse import SparseBytes

FORMAT = 1  # the number in the root attribute `dino_extract_format`
ERROR_BYTES = 96  # UTF-8 bytes of one text in `/error`
# Datasets that `/layout_crc` covers: row data has `/row_crc`, and no checksum covers itself.
LAYOUT_DATASETS = ("paths", "file_size", "file_mtime_ns", "grid_size", "patch_offsets")
_PAGE = 4096  # row datasets start on a page, so that no row shares a disk page with the metadata

AttrValue = str | int | float | bool


@dataclass(frozen=True)
class RowDataset:
    """One dataset with a row per image.

    Args:
        name: HDF5 path without the leading slash, for example `layers/9/features`.
        shape: shape of one row; of one patch where `is_ragged`.
        dtype: numpy name of the element type, for example `float16`; always stored little-endian.
        is_ragged: rows have as many patches as their image's grid; the dataset is flat, `/patch_offsets` says where each row lies.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_ragged: bool = False

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The element type as stored."""
        dtype: np.dtype[Any] = np.dtype(self.dtype).newbyteorder("<")
        return dtype

    @property
    def item_nbytes(self) -> int:
        """Bytes of one row, or of one patch where ragged."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.numpy_dtype.itemsize


# Row data that every store has, after the datasets asked for; `/error` is last because it stays a hole in the file.
BOOKKEEPING = (RowDataset("image_size", (2,), "int32"), RowDataset("status", (), "uint8"), RowDataset("error", (), f"S{ERROR_BYTES}"))


@dataclass(frozen=True)
class Layout:
    """The datasets and attributes of a store.

    Args:
        datasets: row datasets in stored order, without the bookkeeping that every store has.
        attrs: root attributes; no clock, host or duration, so that the same inputs give the same bytes.
        signature: names of the attributes that must be equal for rows of an earlier run to be kept.
    """

    datasets: tuple[RowDataset, ...]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    signature: tuple[str, ...] = ()

    @property
    def row_datasets(self) -> tuple[RowDataset, ...]:
        """All row datasets in stored order: the checksum of a row goes over their bytes in this order."""
        return (*self.datasets, *BOOKKEEPING)

    @property
    def is_ragged(self) -> bool:
        """Whether some rows have as many patches as their image's grid."""
        return any(dataset.is_ragged for dataset in self.datasets)

    def nbytes(self, num_rows: int, longest_key: int, num_patches: int = 0) -> int:
        """Size of the finished file in bytes.

        Args:
            num_rows: number of images.
            longest_key: bytes of the longest key.
            num_patches: patches of all images together, where ragged.
        """
        return _Draft(self, num_rows, longest_key, num_patches).close().nbytes


@dataclass(frozen=True, eq=False)
class RowTable:
    """The images of a store, one row each.

    Args:
        keys: (N,) paths relative to the source as raw bytes, sorted, unique, without NUL.
        file_size: (N,) int64, bytes.
        file_mtime_ns: (N,) int64, time of last change in nanoseconds; equal size and time mean an unchanged image.
        grid_size: (N, 2) int32, patch grid (h, w) of each image, where the layout is ragged; (0, 0) where unknown.
        unread: what could not be looked into, by the start of the keys that it may hold.
    """

    keys: Sequence[bytes]
    file_size: NDArray[np.int64]
    file_mtime_ns: NDArray[np.int64]
    grid_size: NDArray[np.int32] | None = None
    unread: Mapping[bytes, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def check(self, layout: Layout) -> None:
        """Assert what the store relies on."""
        num_rows = len(self.keys)
        assert all(a < b for a, b in zip(self.keys, self.keys[1:], strict=False)), "keys must be sorted and unique"
        assert all(key and b"\0" not in key for key in self.keys), "keys must not be empty or contain NUL"
        assert self.file_size.shape == self.file_mtime_ns.shape == (num_rows,), "one size and one time per key"
        assert layout.is_ragged == (self.grid_size is not None), "a ragged layout, and only that, needs the grid of every image"
        assert self.grid_size is None or self.grid_size.shape == (num_rows, 2), "one grid (h, w) per key"

    def patch_offsets(self) -> NDArray[np.int64] | None:
        """(N + 1,) int64: row i owns the flat rows `offsets[i]:offsets[i + 1]`; None where nothing is ragged."""
        if self.grid_size is None:
            return None
        counts = self.grid_size.astype(np.int64).prod(axis=1)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


@dataclass(frozen=True)
class Extent:
    """Where the bytes of one dataset lie in the file."""

    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A complete store without its rows: every byte that is not row data, in memory.

    Args:
        nbytes: size of the file.
        extents: place of every dataset, by name.
        content: the bytes; row data reads as zero.
        layout_crc: checksum of everything but row data and checksums.
    """

    nbytes: int
    extents: dict[str, Extent]
    content: SparseBytes
    layout_crc: int


def covered_spans(nbytes: int, left_out: Sequence[Extent]) -> list[tuple[int, int]]:
    """The spans (start, end) of a file of `nbytes` bytes that `/layout_crc` covers, ascending."""
    spans, start = [], 0
    for extent in sorted(left_out, key=lambda extent: extent.offset):
        if extent.nbytes:
            spans.append((start, extent.offset))
            start = extent.offset + extent.nbytes
    return [(a, b) for a, b in [*spans, (start, nbytes)] if a < b]


def build_skeleton(layout: Layout, rows: RowTable) -> Skeleton:
    """Lay out the store of `rows`; the same arguments give the same bytes."""
    offsets = rows.patch_offsets()
    longest_key = max(map(len, rows.keys), default=1)
    draft = _Draft(layout, len(rows), longest_key, 0 if offsets is None else int(offsets[-1])).close()
    content = {"paths": np.array(rows.keys, dtype=f"S{longest_key}"), "file_size": rows.file_size, "file_mtime_ns": rows.file_mtime_ns}
    if rows.grid_size is not None and offsets is not None:
        content |= {"grid_size": rows.grid_size, "patch_offsets": offsets}
    for name, array in content.items():
        stored = np.ascontiguousarray(array, _FIXED_DTYPES.get(name, array.dtype))
        if stored.size:
            draft.content.put(draft.extents[name].offset, stored.reshape(-1).view(np.uint8).data)  # gigabytes for many images: no copy
    left_out = [extent for name, extent in draft.extents.items() if name not in LAYOUT_DATASETS]
    crc = 0
    for start, end in covered_spans(draft.nbytes, left_out):
        for piece in draft.content.pieces(start, end):
            crc = zlib.crc32(piece, crc)
    draft.content.put(draft.extents["layout_crc"].offset, np.array(crc, "<u4").tobytes())
    return Skeleton(draft.nbytes, draft.extents, draft.content, crc)


_FIXED_DTYPES = {"file_size": "<i8", "file_mtime_ns": "<i8", "grid_size": "<i4", "patch_offsets": "<i8"}


class _Draft:
    """HDF5 metadata in the making: h5py writes into memory, and tells where it has put each dataset."""

    def __init__(self, layout: Layout, num_rows: int, longest_key: int, num_patches: int) -> None:
        self.content = SparseBytes()
        self.extents: dict[str, Extent] = {}
        # v108..v110: no "open for writing" mark in the file, and every HDF5 since 1.8 reads it.
        self._file = h5py.File(self.content, "w", libver=("v108", "v110"), alignment_threshold=_PAGE, alignment_interval=_PAGE)
        for name, value in sorted(_root_attrs(layout).items()):
            self._file.attrs[name] = value
        self._add("paths", (num_rows,), _text_type(max(longest_key, 1)))
        self._add("file_size", (num_rows,), _FIXED_DTYPES["file_size"])
        self._add("file_mtime_ns", (num_rows,), _FIXED_DTYPES["file_mtime_ns"])
        if layout.is_ragged:
            self._add("grid_size", (num_rows, 2), _FIXED_DTYPES["grid_size"])
            self._add("patch_offsets", (num_rows + 1,), _FIXED_DTYPES["patch_offsets"])
        self._add("layout_crc", (), "<u4")
        self._add("row_crc", (num_rows,), "<u4")
        for dataset in layout.row_datasets:
            first_dim = num_patches if dataset.is_ragged else num_rows
            h5_type = _text_type(ERROR_BYTES) if dataset.name == "error" else dataset.numpy_dtype
            self._add(dataset.name, (first_dim, *dataset.shape), h5_type)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.content.size

    def close(self) -> _Draft:
        """Have HDF5 write the last of its metadata."""
        self._file.close()
        return self

    def _add(self, name: str, shape: tuple[int, ...], h5_type: Any) -> None:
        if not isinstance(h5_type, h5py.h5t.TypeID):
            h5_type = h5py.h5t.py_create(np.dtype(h5_type))
        placement = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        placement.set_layout(h5py.h5d.CONTIGUOUS)
        placement.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        placement.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        placement.set_obj_track_times(False)  # HDF5 would write the clock into the file
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
        dataset = h5py.h5d.create(self._file.id, name.encode(), h5_type, space, placement, links)
        # HDF5 gives an empty dataset no place.
        self.extents[name] = Extent(dataset.get_offset() or 0, dataset.get_storage_size())


OWN_ATTRS = ("dino_extract_format", "row_datasets", "ragged_datasets")  # which the store itself writes


def _root_attrs(layout: Layout) -> dict[str, AttrValue]:
    own: dict[str, AttrValue] = {
        "dino_extract_format": FORMAT,
        "row_datasets": json.dumps([dataset.name for dataset in layout.row_datasets]),
    }
    if layout.is_ragged:
        own["ragged_datasets"] = json.dumps([dataset.name for dataset in layout.datasets if dataset.is_ragged])
    assert not own.keys() & layout.attrs.keys(), "these attributes are written by the store itself"
    return {**layout.attrs, **own}


def _text_type(nbytes: int) -> Any:
    """Fixed-length text marked UTF-8; h5py's own string_dtype would refuse or truncate names that are not UTF-8."""
    text = h5py.h5t.C_S1.copy()
    text.set_size(nbytes)
    text.set_strpad(h5py.h5t.STR_NULLPAD)
    text.set_cset(h5py.h5t.CSET_UTF8)
    return text


def target_of(path: str | os.PathLike[str]) -> str:
    """Where a store is written that is asked for at `path`: a link stays, and what it points to is replaced."""
    name = os.fspath(path)
    return os.path.realpath(name) if os.path.islink(name) else name


def part_path_of(path: str | os.PathLike[str]) -> str:
    """The file of the run in progress that will become `path`."""
    return target_of(path) + ".part"


def present_path_of(path: str | os.PathLike[str]) -> str:
    """The finished file, or where there is none yet the `.part` of the run in progress."""
    part_path = part_path_of(path)
    return part_path if not os.path.exists(path) and os.path.lexists(part_path) else os.fspath(path)
