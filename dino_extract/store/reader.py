"""A store as its users see it: the embedded images in order, read a piece at a time."""

from __future__ import annotations

import os
from functools import cached_property
from html import escape
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import StoreError
from dino_extract.names import printable
from dino_extract.status import Status
from dino_extract.store.header import connect, read_header
from dino_extract.store.layout import BOOKKEEPING, present_path_of
from dino_extract.store.selection import RaggedRows, Rows
from dino_extract.store.tables import arrow_table, data_frame

# datasets of the file that have an attribute of their own here
_ELSEWHERE = {name: name for name in ("paths", "image_size", "file_size", "file_mtime_ns")} | {"status": "all_status", "error": "failures"}


class Failure(NamedTuple):
    """An image that could not be embedded."""

    path: str
    status: Status
    error: str


class Store:
    """A store open for reading; rows of images that could not be embedded are left out everywhere but in `failures` and `all_*`.

    Use it in a `with` block, or call `close`.

    Attributes:
        path: the file that is open: the finished one, or the `.part` of a run in progress.
        attrs: root attributes as Python values.
        names: datasets with a row per image, as the run was asked for them.
        all_status: (N,) uint8 `Status` of every image; PENDING where the row is not committed yet.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: h5py.File = connect(path)
        try:
            self._header = read_header(self._file, path)
            is_committed = self._file["row_crc"][:] != 0
            self.all_status: NDArray[np.uint8] = np.where(is_committed, self._file["status"][:], np.uint8(Status.PENDING))
        except BaseException:
            self._file.close()
            raise
        bookkeeping = {dataset.name for dataset in BOOKKEEPING}
        self.attrs = dict(self._header.attrs)
        self.names = tuple(dataset.name for dataset in self._header.datasets if dataset.name not in bookkeeping)
        self.progress = (int(is_committed.sum()), len(is_committed))
        self._rows = np.flatnonzero(self.all_status == Status.OK)

    def __len__(self) -> int:
        """Number of embedded images."""
        return len(self._rows)

    @cached_property
    def all_paths(self) -> list[str]:
        """(N,) paths of every image of the file, embedded or not."""
        return [os.fsdecode(key) for key in self._header.paths.tolist()]

    @property
    def is_complete(self) -> bool:
        """Whether every row is committed; False for a run in progress or interrupted."""
        return self.progress[0] == self.progress[1]

    def require_complete(self) -> Store:
        """This store, if every row is committed.

        Raises:
            StoreError: the run that makes it is not finished.
        """
        if not self.is_complete:
            done, total = self.progress
            message = f"`{self.path}` is not finished: {done:,} of {total:,} rows"
            raise StoreError(message, hint="run the same `dino-extract embed` command again, it continues")
        return self

    @cached_property
    def paths(self) -> list[str]:
        """(n,) paths of the embedded images relative to their source; bytes that are not UTF-8 as surrogates, see `os.fsdecode`."""
        return [self.all_paths[row] for row in self._rows.tolist()]

    @property
    def num_failed(self) -> int:
        """Number of images that could not be embedded."""
        return int(np.count_nonzero(self._is_failed))

    @property
    def _is_failed(self) -> NDArray[np.bool_]:
        return np.asarray((self.all_status != Status.OK) & (self.all_status != Status.PENDING))

    @property
    def failures(self) -> list[Failure]:
        """The images that could not be embedded, and why."""
        rows = np.flatnonzero(self._is_failed)
        texts = Rows(self._dataset("error"), rows, (self, "error"))[:]
        return [
            Failure(os.fsdecode(self._header.paths[row]), Status(self.all_status[row]), text.decode(errors="replace"))
            for row, text in zip(rows.tolist(), texts.tolist(), strict=True)
        ]

    @property
    def image_size(self) -> NDArray[np.int32]:
        """(n, 2) int32 height and width in pixels of the embedded images, after orientation."""
        return Rows(self._dataset("image_size"), self._rows, (self, "image_size"))[:]

    @property
    def file_size(self) -> NDArray[np.int64]:
        """(n,) int64 bytes of the embedded images."""
        return self._header.file_size[self._rows]

    @property
    def file_mtime_ns(self) -> NDArray[np.int64]:
        """(n,) int64 times of last change of the embedded images in nanoseconds."""
        return self._header.file_mtime_ns[self._rows]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Rows | RaggedRows:
        """The rows of one dataset, read when they are indexed.

        Raises:
            StoreError: the store has no such dataset.
        """
        if not isinstance(name, str):
            raise TypeError(f"a store is indexed by the name of a dataset, got {name!r}: rows are `store['{self.names[0]}'][{name!r}]`")
        if name not in self.names:
            message = f"`{self.path}` has no `{name}`, only {', '.join(self.names)}"
            usual = "embed again with the `--tokens` or `--layers` that make it, and another `-o`"
            raise StoreError(message, hint=f"`store.{_ELSEWHERE[name]}` has it" if name in _ELSEWHERE else usual)
        if any(dataset.name == name and dataset.is_ragged for dataset in self._header.datasets):
            assert self._header.patch_offsets is not None and self._header.grid_size is not None, "checked when the header was read"
            return RaggedRows(self._dataset(name), self._rows, self._header.patch_offsets, self._header.grid_size, (self, name))
        return Rows(self._dataset(name), self._rows, (self, name))

    def _dataset(self, name: str) -> h5py.Dataset:
        if not self._file:
            raise StoreError(f"`{self.path}` is closed", hint="open it again, and work inside the `with` block")
        return self._file[name]

    @property
    def features(self) -> Rows:
        """(n, D) CLS embeddings."""
        return self._even("features")

    @property
    def mean_features(self) -> Rows:
        """(n, D) means of the patch tokens."""
        return self._even("mean_features")

    @property
    def register_features(self) -> Rows:
        """(n, R, D) register tokens."""
        return self._even("register_features")

    @property
    def patch_features(self) -> Rows | RaggedRows:
        """(n, h, w, D) patch tokens; h and w differ from row to row where the file was made at native aspect."""
        return self["patch_features"]

    def _even(self, name: str) -> Rows:
        rows = self[name]
        assert isinstance(rows, Rows), f"`{name}` has one token per image"
        return rows

    def to_arrow(self) -> Any:
        """The embedded images as a `pyarrow.Table`: path, height, width, and every dataset with one vector per image.

        Raises:
            ConfigError: pyarrow is not installed.
        """
        return arrow_table(self._columns(), self._vectors())

    def to_dataframe(self) -> Any:
        """The embedded images as a `pandas.DataFrame`, with the columns of `to_arrow`.

        Raises:
            ConfigError: pandas is not installed.
        """
        return data_frame(self._columns(), self._vectors())

    def _columns(self) -> dict[str, Any]:
        height, width = self.image_size.T
        return {"path": [printable(path) for path in self.paths], "height": height, "width": width}

    def _vectors(self) -> dict[str, Rows]:
        return {name: rows for name in self.names if isinstance(rows := self[name], Rows) and rows.ndim == 2}

    def _repr_html_(self) -> str:
        shapes = {name: f"{rows.dtype} {rows.shape}" if isinstance(rows := self[name], Rows) else "ragged" for name in self.names}
        body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(shape)}</td></tr>" for name, shape in shapes.items())
        return f"<p>{escape(repr(self))}</p><table>{body}</table>"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (os.path.abspath(self.path),)  # opened again where it is unpickled, as HDF5 files cannot be shared

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self.is_complete else f", unfinished: {self.progress[0]:,} of {self.progress[1]:,} rows"
        return f"<Store {self.path}: {len(self):,} images, {', '.join(self.names)}{state}>"


def open_store(path: str | os.PathLike[str]) -> Store:
    """A store open for reading: the finished file, or where there is none yet the `.part` of the run in progress.

    Raises:
        StoreError: no such file, not a store, damaged, or not safe to read.
    """
    return Store(present_path_of(path))
