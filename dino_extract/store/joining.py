"""Several finished files put together into one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dino_extract.config import SIGNATURE, parse_shard
from dino_extract.errors import StoreError
from dino_extract.names import counted, path_as_text, path_from_text
from dino_extract.results import Result, shown
from dino_extract.status import Status
from dino_extract.store import disk
from dino_extract.store.donor import Donor, differences
from dino_extract.store.header import Header
from dino_extract.store.layout import BOOKKEEPING, OWN_ATTRS, Layout, RowTable, part_path_of, target_of
from dino_extract.store.lock import lock_for_writing
from dino_extract.store.opening import open_part, remove_leftovers
from dino_extract.store.plan import MergePlan
from dino_extract.store.writer import Writer

_Number = TypeVar("_Number", np.int32, np.int64)


@dataclass(frozen=True, repr=False)
class JoinResult(Result):
    """What `join_stores` did.

    Args:
        path: the new file.
        files: that were put together.
        total: rows of the new file.
        failed: rows of it without an embedding.
        repeated: rows left out because another file has the same path.
    """

    path: str
    files: int
    total: int
    failed: int
    repeated: int

    def summary(self) -> str:
        """Path and counts."""
        return f"{shown(self.path)}, {counted(self.total, 'row')} of {counted(self.files, 'file')}"


def join_stores(
    files: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    signature: Sequence[str] = SIGNATURE,
) -> JoinResult:
    """Put finished files with the same settings together into one; all shards of a run give the file that one run would have made.

    Paths stay as they are where all files are of one folder. Otherwise they begin at the folder that all of theirs lie in. Of rows with
    the same path the embedded one is taken, then the one whose image is newer, then the first. Every row is checked on the way.

    Args:
        files: to be joined.
        output: the new file.
        overwrite: replace a file that is there; it may be one of `files`.
        signature: names of the attributes that must be equal in all files.

    Raises:
        StoreBusyError: another process is writing `output`.
        StoreError: files differ in their settings, are not finished or damaged, a shard is missing, `output` exists, or the disk refuses.
    """
    path = target_of(output)
    if not files:
        raise StoreError("no file to join", hint="name the files that `dino-extract embed` made")
    with contextlib.ExitStack() as on_exit:
        donors = []
        for file in files:
            donors.append(Donor(os.fspath(file)))
            on_exit.callback(donors[-1].close)
        headers = [donor.header for donor in donors]
        layout = _joined_layout(headers, signature)
        _check_shards(headers)
        for donor in donors:
            _check_rows(donor)
        lock = lock_for_writing(path)
        on_exit.callback(lock.release)
        with disk.explained(f"write `{path}`"):
            remove_leftovers(path)
            for existing in (path, part_path_of(path)):
                if os.path.lexists(existing) and not overwrite:
                    raise StoreError(f"`{existing}` exists", hint="`-o` chooses another file, `--overwrite` replaces it")
            plan = _joined_plan(donors, _prefixes(headers))
            with Writer(path, plan.table, layout, plan.pending, lock, open_part(path, plan, donors, layout)) as writer:
                writer.finish()
        status = np.concatenate([donors[number].status[plan.source_row[plan.source == number]] for number in range(len(donors))])
    rows = sum(map(len, donors))
    return JoinResult(path, len(donors), len(status), int(np.count_nonzero(status != Status.OK)), rows - len(status))


def _joined_layout(headers: Sequence[Header], signature: Sequence[str]) -> Layout:
    """That of the first file, for all images.

    Raises:
        StoreError: another file differs from it.
    """
    first = headers[0]
    attrs = {name: value for name, value in first.attrs.items() if name not in OWN_ATTRS and name != "shard"}
    if "root" in attrs:
        attrs["root"] = path_as_text(_common_root(headers))
        sources = chain.from_iterable(json.loads(header.attrs["sources"]) for header in headers)
        attrs["sources"] = json.dumps(list(dict.fromkeys(sources)))
    layout = Layout(first.datasets[: -len(BOOKKEEPING)], attrs, tuple(signature))
    for header in headers[1:]:
        if lines := differences(header, layout, "the first has"):
            message = "\n  ".join([f"`{header.path}` was made with other settings than `{first.path}`:", *lines])
            raise StoreError(message, hint="only files with the same settings can be joined; embed again what differs")
    return layout


def _check_shards(headers: Sequence[Header]) -> None:
    """Refuse some of the shards of a run without the others."""
    shards = {(header.attrs["root"], *parse_shard(header.attrs["shard"])) for header in headers if "shard" in header.attrs}
    for root, _, count in sorted(shards):
        missing = [f"{number}/{count}" for number in range(1, count + 1) if (root, number, count) not in shards]
        if missing:
            message = f"of the {count} shards of `{root}` {len(missing)} are not among the files: {', '.join(missing)}"
            raise StoreError(message, hint="name all of them, or embed the missing ones with `--shard`")


def _check_rows(donor: Donor) -> None:
    unfinished = int(np.count_nonzero(donor.crcs == 0))
    if unfinished:
        message = f"`{donor.path}` is not finished: {unfinished:,} of {len(donor):,} rows are missing"
        raise StoreError(message, hint="run the `dino-extract embed` command that makes it again, it continues")
    donor.verify()
    damaged = np.flatnonzero(~donor.usable)
    if len(damaged):
        message = f"{len(damaged):,} rows of `{donor.path}` are damaged, the first is `{os.fsdecode(donor.header.keys[int(damaged[0])])}`"
        raise StoreError(message, hint="run the `dino-extract embed` command that made it again with `--retry-failed`")


def _root_of(header: Header) -> bytes:
    return path_from_text(str(header.attrs.get("root", "")))


def _common_root(headers: Sequence[Header]) -> bytes:
    return os.path.commonpath([_root_of(header) for header in headers])


def _prefixes(headers: Sequence[Header]) -> list[bytes]:
    """What leads from the common folder to that of each file; nothing where a file's paths are absolute, or the two are the same."""
    common = _common_root(headers)
    has_absolute = [bool(header.keys) and all(key.startswith(b"/") for key in header.keys) for header in headers]
    ways = [b"" if _root_of(header) == common else os.path.relpath(_root_of(header), common) + b"/" for header in headers]
    return [b"" if is_absolute else way for is_absolute, way in zip(has_absolute, ways, strict=True)]


def _joined_plan(donors: Sequence[Donor], prefixes: Sequence[bytes]) -> MergePlan:
    """All rows in the order of their keys, each with the file that it is taken from."""
    chosen: dict[bytes, tuple[bool, int, int, int]] = {}  # embedded or not, time, and place: the largest is taken
    for number, (donor, prefix) in enumerate(zip(donors, prefixes, strict=True)):
        columns = zip(donor.header.keys, (donor.status == Status.OK).tolist(), donor.header.file_mtime_ns.tolist(), strict=True)
        for row, (key, is_good, mtime_ns) in enumerate(columns):
            key, this = prefix + key, (is_good, mtime_ns, -number, row)
            chosen[key] = max(this, chosen.get(key, this))
    keys = sorted(chosen)
    places = [chosen[key] for key in keys]
    source = np.array([-number for _, _, number, _ in places], np.int64)
    source_row = np.array([row for _, _, _, row in places], np.int64)

    def taken(columns: list[NDArray[_Number]]) -> NDArray[_Number]:
        values = np.empty((len(keys), *columns[0].shape[1:]), columns[0].dtype)
        for number, column in enumerate(columns):
            values[source == number] = column[source_row[source == number]]
        return values

    headers = [donor.header for donor in donors]
    grids = [header.grid_size for header in headers if header.grid_size is not None]
    file_size, file_mtime_ns = taken([header.file_size for header in headers]), taken([header.file_mtime_ns for header in headers])
    table = RowTable(keys, file_size, file_mtime_ns, taken(grids) if grids else None)
    return MergePlan(table, source, source_row, ())
