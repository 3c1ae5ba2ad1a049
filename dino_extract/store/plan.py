"""Which rows a file will have, and which of them are copied from earlier work instead of computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import SourceError
from dino_extract.status import Status
from dino_extract.store.donor import Donor
from dino_extract.store.layout import RowTable

TO_COMPUTE = -1  # in `MergePlan.source`: no earlier work has the row


@dataclass(frozen=True, eq=False)
class MergePlan:
    """The rows of the target, each with where it comes from.

    Args:
        table: the images asked for, and those of earlier work that are kept, in one sorted table.
        source: (N,) number of the donor that has the row, or `TO_COMPUTE`.
        source_row: (N,) its row there.
        lost: keys of rows that are damaged and whose images were deleted, so that they cannot be computed again.
        dropped: number of rows of earlier work that are left out because their images were deleted.
    """

    table: RowTable
    source: NDArray[np.int64]
    source_row: NDArray[np.int64]
    lost: tuple[bytes, ...]
    dropped: int = 0

    @property
    def pending(self) -> NDArray[np.int64]:
        """Row numbers to compute, ascending."""
        return np.flatnonzero(self.source == TO_COMPUTE)

    def is_all_of(self, donor: Donor, number: int) -> bool:
        """Whether the target has exactly the rows of one donor and nothing is left to compute."""
        same_rows = len(self.table) == len(donor) and bool((self.source_row == np.arange(len(donor))).all())
        return same_rows and bool((self.source == number).all())


def make_plan(rows: RowTable, donors: Sequence[Donor], *, retry_failed: bool, prune: bool) -> MergePlan:
    """Merge the images asked for with earlier work.

    Args:
        rows: what the source holds now.
        donors: earlier work, the one to be preferred first.
        retry_failed: compute rows again that failed.
        prune: drop rows whose images are not in `rows`, instead of keeping them.

    Raises:
        SourceError: `prune` would drop rows of images that could not be looked for.
    """
    source = np.full(len(rows), TO_COMPUTE, np.int64)
    source_row = np.full(len(rows), TO_COMPUTE, np.int64)
    if not donors:
        return MergePlan(rows, source, source_row, ())
    index_of = {key: row for row, key in enumerate(rows.keys)}  # hundreds of bytes a row: not for a new file
    kept: dict[bytes, tuple[int, int]] = {}
    lost: set[bytes] = set()
    deleted = {key for donor in donors for key in donor.header.keys if key not in index_of} if prune else set()
    _check_all_read(rows, deleted)
    for number, donor in enumerate(donors):
        target = np.array([index_of.get(key, TO_COMPUTE) for key in donor.header.keys], np.int64)
        is_listed = target != TO_COMPUTE
        take = is_listed & donor.reusable(retry_failed=retry_failed)
        take[take] &= _is_unchanged(rows, target[take], donor, np.flatnonzero(take))
        take[take] &= source[target[take]] == TO_COMPUTE
        source[target[take]], source_row[target[take]] = number, np.flatnonzero(take)
        if not prune:
            usable, keys = donor.usable, donor.header.keys
            is_kept = ~is_listed & usable & (donor.status != Status.VANISHED)  # without an image it will never be tried again
            for row in np.flatnonzero(is_kept).tolist():
                kept.setdefault(keys[row], (number, row))
            lost.update(keys[row] for row in np.flatnonzero(~is_listed & ~usable & (donor.crcs != 0)).tolist())
    return replace(_merged(rows, donors, source, source_row, kept, tuple(sorted(lost - kept.keys()))), dropped=len(deleted))


def _check_all_read(rows: RowTable, deleted: set[bytes]) -> None:
    for start, what in rows.unread.items():
        num_unsure = sum(key.startswith(start) for key in deleted)
        if num_unsure:
            message = f"pruning would drop {num_unsure:,} rows whose images may still be there, because this could not be read: {what}"
            raise SourceError(message, hint="make it readable or remove it, or leave `--prune` out")


def _is_unchanged(rows: RowTable, wanted: NDArray[np.int64], donor: Donor, held: NDArray[np.int64]) -> NDArray[np.bool_]:
    header = donor.header
    same = (rows.file_size[wanted] == header.file_size[held]) & (rows.file_mtime_ns[wanted] == header.file_mtime_ns[held])
    if rows.grid_size is not None and header.grid_size is not None:
        same &= (rows.grid_size[wanted] == header.grid_size[held]).all(axis=1)
    return np.asarray(same)


def _merged(
    rows: RowTable,
    donors: Sequence[Donor],
    source: NDArray[np.int64],
    source_row: NDArray[np.int64],
    kept: dict[bytes, tuple[int, int]],
    lost: tuple[bytes, ...],
) -> MergePlan:
    if not kept:
        return MergePlan(rows, source, source_row, lost)
    keys = [*rows.keys, *kept]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    origins = [(donors[number].header, row) for number, row in kept.values()]
    table = RowTable(
        keys=[keys[i] for i in order],
        file_size=np.append(rows.file_size, [header.file_size[row] for header, row in origins])[order].astype(np.int64),
        file_mtime_ns=np.append(rows.file_mtime_ns, [header.file_mtime_ns[row] for header, row in origins])[order].astype(np.int64),
        grid_size=None
        if rows.grid_size is None
        else _with_grids(rows.grid_size, [header.grid_size[row] for header, row in origins if header.grid_size is not None])[order],
    )
    places = np.array(list(kept.values()), np.int64)
    return MergePlan(table, np.append(source, places[:, 0])[order], np.append(source_row, places[:, 1])[order], lost)


def _with_grids(grid_size: NDArray[np.int32], more: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([grid_size, np.array(more, np.int32).reshape(-1, 2)])
