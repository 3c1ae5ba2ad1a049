"""Embeddings in an HDF5 file that no crash can hurt, and back; the only part of the package that knows this format.

`open_writer` begins or continues a file, `open_store` reads one, `join_stores` puts several together, and `verify_store` finds damage.
docs/file-format.md has the format.
`read_dataset` reads a dataset of an HDF5 file of any other kind.
"""

from __future__ import annotations

from dino_extract.status import Status
from dino_extract.store.facts import FileInfo, info
from dino_extract.store.foreign import begins_as_hdf5, read_dataset
from dino_extract.store.header import is_store
from dino_extract.store.integrity import VerifyReport, verify_store
from dino_extract.store.joining import JoinResult, join_stores
from dino_extract.store.layout import FORMAT, Layout, RowDataset, RowTable, part_path_of
from dino_extract.store.lock import StoreWarning
from dino_extract.store.opening import count_pending, open_writer
from dino_extract.store.reader import Failure, Store, open_store
from dino_extract.store.selection import RaggedRows, Rows
from dino_extract.store.writer import Writer

__all__ = [
    "FORMAT",
    "Failure",
    "FileInfo",
    "JoinResult",
    "Layout",
    "RaggedRows",
    "RowDataset",
    "RowTable",
    "Rows",
    "Status",
    "Store",
    "StoreWarning",
    "VerifyReport",
    "Writer",
    "begins_as_hdf5",
    "count_pending",
    "info",
    "is_store",
    "join",
    "join_stores",
    "open",
    "open_store",
    "open_writer",
    "part_path_of",
    "read_dataset",
    "verify_store",
]

# how they are called in `dino_extract` itself
join, open = join_stores, open_store  # noqa: A001 - the public name is `dx.open`
