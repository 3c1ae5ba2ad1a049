"""Finds damage in a store, years later and on any machine, down to the row."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np

from dino_extract.store import disk
from dino_extract.store.foreign import begins_as_hdf5
from dino_extract.store.header import DamagedHeaderError, open_hdf5, read_header
from dino_extract.store.rows import intact_rows

HEADER_LIMIT_S = 120.0  # a header of 10 million rows takes seconds
_READ_HEADER = """
import signal, sys
limit, path, *sys.path = sys.argv[1:]
signal.alarm(int(limit))  # where nobody is left to end it
from dino_extract.store.header import open_hdf5, read_header
with open_hdf5(path) as file:
    read_header(file, path)
"""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_store` found.

    Args:
        path: the file.
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


def verify_store(path: str | os.PathLike[str], *, header_limit_s: float | None = HEADER_LIMIT_S) -> VerifyReport:
    """Read a whole store, in bounded memory, and compare it with its checksums.

    Args:
        path: the file.
        header_limit_s: seconds that another process may take to read the header first, because damaged metadata can make HDF5 crash or
            loop for ever; None reads it in this process only.

    Raises:
        StoreError: there is no such file, it is not a store, or another program has rewritten it.
    """
    path = os.fspath(path)
    if header_limit_s is not None and (fate := _fate_of_reader(path, header_limit_s)):
        return VerifyReport(path, header_damage=f"the header of `{path}` is damaged: HDF5 {fate} while reading it")
    try:
        with open_hdf5(path) as file:
            header = read_header(file, path)
    except DamagedHeaderError as error:
        if not begins_as_hdf5(path):
            raise
        return VerifyReport(path, header_damage=error.message)
    areas = header.areas
    with disk.explained(f"read `{path}`"):
        fd = os.open(path, os.O_RDONLY)
        try:
            is_sound = header.has_intact_layout(fd)
            crcs = header.read_crcs(fd)
            intact = intact_rows(fd, areas, crcs)
        finally:
            os.close(fd)
    damaged = np.flatnonzero((crcs != 0) & ~intact).tolist()
    return VerifyReport(
        path=path,
        num_rows=len(crcs),
        damaged_rows=tuple((row, os.fsdecode(header.keys[row])) for row in damaged),
        num_uncommitted=int((crcs == 0).sum()),
        header_damage=None if is_sound else "metadata, paths, or file sizes and times are not as they were written",
    )


def _fate_of_reader(path: str, limit_s: float) -> str | None:
    """What befell HDF5 in a process that has read the header; None if it came back. Why it refused, this process will say."""
    own_limit = str(math.ceil(limit_s) + 1)
    command = [sys.executable, "-I", "-c", _READ_HEADER, own_limit, path, *(os.path.abspath(entry) for entry in sys.path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"did not come back within {limit_s:g} s"
    return f"died of signal {-done.returncode}" if done.returncode < 0 else None
