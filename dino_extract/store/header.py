"""Everything a store says about itself before a row is read: attributes, keys, and the place of each dataset."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import StoreError
from dino_extract.names import quoted
from dino_extract.store import disk
from dino_extract.store.foreign import check_foreign
from dino_extract.store.guard import how_reader_ended
from dino_extract.store.layout import FORMAT, LAYOUT_DATASETS, AttrValue, Extent, RowDataset, covered_spans
from dino_extract.store.rows import RowArea, row_areas

READER_LIMIT_S = 20  # that reading the attributes of a damaged file may take
_READ_NBYTES = 8 << 20
_FIXED = {"paths": "S", "file_size": "i", "file_mtime_ns": "i", "row_crc": "u", "layout_crc": "u"}  # name -> kind of its elements


class DamagedHeaderError(StoreError):
    """The part of a store that says where its rows are cannot be read."""


@dataclass(frozen=True, eq=False)
class Header:
    """A store without its rows.

    Args:
        path: the file.
        nbytes: its size.
        attrs: root attributes as Python values.
        datasets: row datasets in stored order, `image_size`, `status` and `error` among them.
        paths: (N,) keys as an array, which takes a third of the memory of `keys`.
        file_size: (N,) int64.
        file_mtime_ns: (N,) int64.
        grid_size: (N, 2) int32 where ragged.
        patch_offsets: (N + 1,) int64 where ragged.
        layout_crc: what the file says its checksum is.
        has_intact_layout: everything that is not row data reads exactly as it was written.
        extents: place of each dataset that lies in one piece.
    """

    path: str
    nbytes: int
    attrs: dict[str, Any]
    datasets: tuple[RowDataset, ...]
    paths: NDArray[np.bytes_] = field(repr=False)
    file_size: NDArray[np.int64]
    file_mtime_ns: NDArray[np.int64]
    grid_size: NDArray[np.int32] | None
    patch_offsets: NDArray[np.int64] | None
    layout_crc: int
    has_intact_layout: bool
    extents: dict[str, Extent]

    @cached_property
    def keys(self) -> list[bytes]:
        """(N,) raw bytes, sorted."""
        keys: list[bytes] = self.paths.tolist()
        return keys

    @cached_property
    def areas(self) -> list[RowArea]:
        """Places of the row datasets, in stored order.

        Raises:
            StoreError: another program has rewritten the file and cut its datasets into chunks.
        """
        missing = [each.name for each in self.datasets if each.name not in self.extents] + [
            name for name in _FIXED if name not in self.extents
        ]
        if missing:
            message = f"`{self.path}` was rewritten by another program (`{missing[0]}` is in chunks), so its checksums no longer apply"
            raise StoreError(message, hint="keep the file that `dino-extract embed` wrote; this one can still be read")
        return row_areas(self.datasets, self.extents, self.patch_offsets)

    def read_crcs(self, fd: int) -> NDArray[np.uint32]:
        """(N,) checksum of every row, 0 where it is not committed."""
        extent = self.extents["row_crc"]
        return np.frombuffer(disk.read_exactly(fd, extent.nbytes, extent.offset), "<u4").astype(np.uint32)


@contextlib.contextmanager
def open_hdf5(path: str) -> Iterator[h5py.File]:
    """An h5py file that is ours and safe to read; nothing of it has been read yet.

    Raises:
        StoreError: no such file, not HDF5, not a store, of a newer format, or not safe.
    """
    file = connect(path)
    try:
        yield file
    finally:
        file.close()


def _opened(path: str) -> h5py.File:
    # No lock: a store is never changed in a way that hurts a reader, and NFS without locks would refuse.
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "file locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # this process has it open through h5py alone, and HDF5 wants the same kind of lock from all


def connect(path: str) -> h5py.File:
    """The same as `open_hdf5`, for a caller that closes the file itself."""
    if not os.path.lexists(path):
        is_ours = path.endswith((".h5", ".hdf5"))
        hint = f"`dino-extract embed SOURCE -o {quoted(path)}` makes it" if is_ours else "name a file that `dino-extract embed` made"
        raise StoreError(f"there is no file `{path}`", hint=hint)
    with disk.explained(f"read `{path}`"):
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # the plain reason, before HDF5 wraps it
    if not os.path.isfile(path):
        raise StoreError(f"`{path}` is not a file", hint="expected a file made by `dino-extract embed`")
    try:
        file = _opened(path)
    except OSError as error:
        message = f"`{path}` is not an HDF5 file, or its first bytes are damaged"
        raise DamagedHeaderError(message, hint="expected a file made by `dino-extract embed`") from error
    try:
        _check_ours(file, path)
        check_foreign(file, path)
    except (StoreError, KeyboardInterrupt):
        file.close()
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:  # what h5py says of damaged metadata
        file.close()
        raise _damaged(path) from error
    return file


def read_header(file: h5py.File, path: str, *, limit_s: int | None = READER_LIMIT_S) -> Header:
    """What a file from `connect` says about itself.

    Args:
        file: the file.
        path: of it.
        limit_s: seconds that another process may take to read the attributes first, where anything outside the rows is not as it was
            written; None reads them here in any case, even if HDF5 never comes back.

    Raises:
        DamagedHeaderError: it contradicts itself or cannot be read.
    """
    try:
        is_intact = _has_intact_layout(file, path)
        if limit_s is not None and not is_intact and (ending := how_reader_ended(path, limit_s)):
            raise _damaged(path, f": HDF5 {ending} while reading it")
        return _read_header(file, path, is_intact=is_intact)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise _damaged(path) from error


def _has_intact_layout(file: h5py.File, path: str) -> bool:
    """Whether everything that is not row data reads exactly as it was written; no attribute is looked at."""
    left_out: list[Extent | None] = []

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and name not in LAYOUT_DATASETS:
            left_out.append(_extent(item))

    file.visititems(note)
    extents = [extent for extent in left_out if extent is not None]
    if len(extents) < len(left_out):
        return False  # another program has cut it into chunks
    fd = file.id.get_vfd_handle()
    crc = 0
    with disk.explained(f"read `{path}`"):
        for start, end in covered_spans(os.fstat(fd).st_size, extents):
            for offset in range(start, end, _READ_NBYTES):
                crc = zlib.crc32(disk.read_exactly(fd, min(_READ_NBYTES, end - offset), offset), crc)
    return crc == int(file["layout_crc"][()])


def _damaged(path: str, how: str = "") -> DamagedHeaderError:
    return DamagedHeaderError(
        f"the header of `{path}` is damaged{how}", hint="restore a copy of the file, or embed again with `--overwrite`"
    )


def is_store(path: str) -> bool:
    """Whether there is a file of ours at this path, finished or not."""
    if not os.path.isfile(path):
        return False
    try:
        with _opened(path) as file:
            return "dino_extract_format" in file.attrs
    except (OSError, RuntimeError):  # not HDF5
        return False


def _check_ours(file: h5py.File, path: str) -> None:
    if "dino_extract_format" not in file.attrs:
        raise StoreError(f"`{path}` is an HDF5 file, but `dino-extract embed` did not make it", hint="choose another file")
    number = int(file.attrs["dino_extract_format"])
    if number > FORMAT:
        raise StoreError(
            f"`{path}` has format {number}, this version reads up to {FORMAT}", hint="update with `pip install -U dino-extract`"
        )


def _read_header(file: h5py.File, path: str, *, is_intact: bool) -> Header:
    attrs = {name: _plain(file.attrs[name]) for name in file.attrs}
    names: list[str] = json.loads(str(attrs["row_datasets"]))
    ragged: list[str] = json.loads(str(attrs.get("ragged_datasets", "[]")))
    num_rows = len(file["paths"])
    fixed = dict(_FIXED, **({"grid_size": "i", "patch_offsets": "i"} if ragged else {}))
    for name, kind in fixed.items():
        _expect(file[name].dtype.kind == kind, f"`{name}` has elements of type {file[name].dtype}")
        expected = () if name == "layout_crc" else (num_rows + (name == "patch_offsets"),)
        _expect(file[name].shape[: len(expected)] == expected, f"`{name}` has shape {file[name].shape}")
    offsets = file["patch_offsets"][:].astype(np.int64) if ragged else None
    datasets = tuple(_row_dataset(file, name, num_rows, offsets if name in ragged else None) for name in names)
    return Header(
        path=path,
        nbytes=os.stat(path).st_size,
        attrs=attrs,
        datasets=datasets,
        paths=file["paths"][:],
        file_size=file["file_size"][:].astype(np.int64),
        file_mtime_ns=file["file_mtime_ns"][:].astype(np.int64),
        grid_size=file["grid_size"][:].astype(np.int32) if ragged else None,
        patch_offsets=offsets,
        layout_crc=int(file["layout_crc"][()]),
        has_intact_layout=is_intact,
        extents={name: extent for name in [*fixed, *names] if (extent := _extent(file[name])) is not None},
    )


def _row_dataset(file: h5py.File, name: str, num_rows: int, offsets: NDArray[np.int64] | None) -> RowDataset:
    dataset = file[name]
    _expect(dataset.dtype.kind in "fiuS" and dataset.dtype.itemsize > 0, f"`{name}` has elements of type {dataset.dtype}")
    if offsets is not None:
        _expect(offsets[0] == 0 and bool((np.diff(offsets) >= 0).all()), "`patch_offsets` does not count up from 0")
        num_rows = int(offsets[-1])
    _expect(dataset.ndim >= 1 and len(dataset) == num_rows, f"`{name}` has shape {dataset.shape}, expected {num_rows} rows")
    dtype = dataset.dtype.str.replace("|", "") if dataset.dtype.kind == "S" else dataset.dtype.name
    return RowDataset(name, dataset.shape[1:], dtype, is_ragged=offsets is not None)


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)


def _extent(dataset: h5py.Dataset) -> Extent | None:
    if dataset.size == 0:
        return Extent(0, 0)
    offset = dataset.id.get_offset()
    return None if offset is None else Extent(offset, dataset.id.get_storage_size())


def _plain(value: Any) -> AttrValue | list[Any]:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    plain: AttrValue | list[Any] = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return plain
