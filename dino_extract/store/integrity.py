"""Finds damage in a store, years later and on any machine, down to the row."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from dino_extract.store import disk
from dino_extract.store.foreign import begins_as_hdf5
from dino_extract.store.header import READER_LIMIT_S, DamagedHeaderError, open_hdf5, read_header
from dino_extract.store.layout import present_path_of
from dino_extract.store.rows import intact_rows


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_store` found.

    Args:
        path: the file that was read.
        num_rows: rows of the file, 0 if the header cannot be read.
        damaged_rows: (row number, path of its image) of every committed row that is not as it was written.
        num_uncommitted: rows not yet written; 0 in a finished file.
        header_damage: what is wrong outside the rows (metadata, paths, file sizes and times), or None.
    """

    path: str
    num_rows: int = 0
    damaged_rows: tuple[tuple[int, str], ...] = ()
    num_uncommitted: int = 0
    header_damage: str | None = None

    @property
    def is_intact(self) -> bool:
        """Whether every byte that was written is as it was written."""
        return not self.damaged_rows and self.header_damage is None


def verify_store(path: str | os.PathLike[str], *, header_limit_s: int | None = READER_LIMIT_S) -> VerifyReport:
    """Read a whole store, in bounded memory, and compare it with its checksums.

    Args:
        path: the file; where it is not finished, its `.part` is read.
        header_limit_s: as `limit_s` of `read_header`.

    Raises:
        StoreError: there is no such file, it is not a store, or another program has rewritten it.
    """
    path = present_path_of(path)
    try:
        with open_hdf5(path) as file:
            header = read_header(file, path, limit_s=header_limit_s)
    except DamagedHeaderError as error:
        if not begins_as_hdf5(path):
            raise
        return VerifyReport(path, header_damage=error.message)
    areas = header.areas
    with disk.explained(f"read `{path}`"):
        fd = os.open(path, os.O_RDONLY)
        try:
            crcs = header.read_crcs(fd)
            intact = intact_rows(fd, areas, crcs)
        finally:
            os.close(fd)
    damaged = np.flatnonzero((crcs != 0) & ~intact).tolist()
    return VerifyReport(
        path=path,
        num_rows=len(crcs),
        damaged_rows=tuple((row, os.fsdecode(header.paths[row])) for row in damaged),
        num_uncommitted=int((crcs == 0).sum()),
        header_damage=None if header.has_intact_layout else "metadata, paths, or file sizes and times are not as they were written",
    )
