"""How a run begins: a new file, one that goes on after an interruption, or an update of a finished one."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import StoreError
from dino_extract.status import Status
from dino_extract.store import disk
from dino_extract.store.donor import Donor, check_same, differences, is_of_other_images, root_differs
from dino_extract.store.layout import Extent, Layout, RowTable, Skeleton, build_skeleton, part_path_of, target_of
from dino_extract.store.lock import StoreWarning, lock_for_writing
from dino_extract.store.plan import TO_COMPUTE, MergePlan, make_plan
from dino_extract.store.rows import RowArea, row_areas, row_blocks, runs, stretches
from dino_extract.store.writer import OpenPart, Writer, identity_of

COPY_NBYTES = 4 << 20  # bytes of rows copied at a time


def open_writer(
    path: str | os.PathLike[str],
    rows: RowTable,
    layout: Layout,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    prune: bool = False,
) -> Writer:
    """Begin, continue or update the HDF5 file at `path`: the writer's `pending` says which rows are missing.

    Rows of earlier runs are kept if they were made with the same settings, their image has the same size and time, and their
    checksum is right. Rows whose image is no longer in `rows` are kept too.

    Args:
        path: the target, which has its name when it is finished.
        rows: the images to embed.
        layout: datasets, attributes, and which of these must agree with earlier work.
        overwrite: replace a finished file of any kind, when the new one is complete. An interrupted run with the same settings over the
            same folder is still continued, so that an overwriting command can be repeated after a crash like any other.
        retry_failed: compute failed rows again, and look for damaged rows in a finished file.
        prune: drop rows whose image is not in `rows`.

    Raises:
        StoreBusyError: another process is writing this file.
        StoreError: a file made with other settings, of another folder or by another program stands there, or the disk refuses.
        SourceError: `prune` would drop rows of images that could not be looked for.
    """
    path = target_of(path)
    rows.check(layout)
    lock = lock_for_writing(path)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(lock.release)
        with disk.explained(f"write `{path}`"), contextlib.ExitStack() as donors_open:
            remove_leftovers(path)
            donors = _open_donors(path, layout, overwrite=overwrite)
            for donor in donors:
                donors_open.callback(donor.close)
            plan = _plan(path, rows, donors, layout, retry_failed=retry_failed, prune=prune)
            if _is_up_to_date(path, plan, donors, layout):
                writer = Writer(path, plan.table, layout, plan.pending, lock, None)
            else:
                writer = Writer(path, plan.table, layout, plan.pending, lock, open_part(path, plan, donors, layout))
            writer.dropped = plan.dropped
            kept = ((donor.status, plan.source_row[plan.source == number]) for number, donor in enumerate(donors))
            writer.failed = sum(int(np.count_nonzero(status[rows] != Status.OK)) for status, rows in kept)
        on_failure.pop_all()
    return writer


def count_pending(
    path: str | os.PathLike[str],
    rows: RowTable,
    layout: Layout,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    prune: bool = False,
) -> tuple[int, int]:
    """How many rows the file will have and how many of them are to be computed, if `open_writer` is called with the same arguments.

    Nothing is locked or written, and rows of earlier runs are not read back, so that damaged ones count as done.

    Raises:
        StoreError: a file made with other settings, of another folder or by another program stands there, or the disk has no room.
        SourceError: `prune` would drop rows of images that could not be looked for.
    """
    path = target_of(path)
    with disk.explained(f"read `{path}`"), contextlib.ExitStack() as donors_open:
        donors = _open_donors(path, layout, overwrite=overwrite)
        for donor in donors:
            donors_open.callback(donor.close)
        plan = make_plan(rows, donors, retry_failed=retry_failed, prune=prune)
        if not _is_up_to_date(path, plan, donors, layout):
            _file_to_be(path, plan, donors, layout)  # refused where it has no room
    return len(plan.table), len(plan.pending)


def remove_leftovers(path: str) -> None:
    """Remove temporary files of runs that died while they laid out the file; call it only under the lock."""
    folder, name = os.path.split(part_path_of(path) + ".new.")
    for entry in os.listdir(folder or "."):
        if entry.startswith(name) and entry[len(name) :].isdigit():
            os.unlink(os.path.join(folder, entry))


def _open_donors(path: str, layout: Layout, *, overwrite: bool) -> list[Donor]:
    """The run in progress and the finished file, as far as they exist and may be used."""
    if os.path.isdir(path):
        raise StoreError(f"`{path}` is a folder, expected a file", hint="choose another file with `-o`")
    donors: list[Donor] = []
    try:
        for candidate in (part_path_of(path), path):
            if not os.path.lexists(candidate) or (overwrite and candidate == path):
                continue
            donor = _open_donor(candidate, overwrite=overwrite)
            if donor is None:
                continue
            donors.append(donor)
            if overwrite and (differences(donor.header, layout) or is_of_other_images(donor.header, layout)):
                donors.pop().close()
            elif not overwrite:
                check_same(donor, layout)
    except BaseException:
        for donor in donors:
            donor.close()
        raise
    return donors


def _open_donor(path: str, *, overwrite: bool) -> Donor | None:
    try:
        return Donor(path)
    except StoreError as error:
        if overwrite:
            return None  # not a store, or damaged: set aside, as asked
        raise StoreError(error.message, hint=error.hint or "`--overwrite` replaces it, `-o` chooses another file") from error


def _is_up_to_date(path: str, plan: MergePlan, donors: Sequence[Donor], layout: Layout) -> bool:
    """Whether the existing file has every row already and needs no change."""
    return (
        len(donors) == 1
        and donors[0].path == path
        and plan.is_all_of(donors[0], 0)
        and not root_differs(donors[0].header, layout)  # else the file must learn where its images are now
    )


def _plan(path: str, rows: RowTable, donors: Sequence[Donor], layout: Layout, *, retry_failed: bool, prune: bool) -> MergePlan:
    plan = make_plan(rows, donors, retry_failed=retry_failed, prune=prune)
    # A finished file was checked when it was published, so "nothing to do" needs no reading of all its rows.
    if not retry_failed and _is_up_to_date(path, plan, donors, layout):
        return plan
    for donor in donors:
        if donor.path != path:
            disk.forget_cache(donor.fd)  # what a failing disk did not keep must not be taken from memory
        donor.verify()
    plan = make_plan(rows, donors, retry_failed=retry_failed, prune=prune)
    if plan.lost:
        first = os.fsdecode(plan.lost[0])
        message = f"{len(plan.lost)} damaged rows of `{path}` are dropped, because their images were deleted; the first is `{first}`"
        warnings.warn(message, StoreWarning, stacklevel=3)
    return plan


def open_part(path: str, plan: MergePlan, donors: Sequence[Donor], layout: Layout) -> OpenPart:
    """The part file of `path` for a plan, with the rows that it takes from donors (which must be verified); call it under the lock."""
    skeleton, part = _file_to_be(path, plan, donors, layout)
    areas = row_areas(layout.row_datasets, skeleton.extents, plan.table.patch_offsets())
    part_path = part_path_of(path)
    if part is not None:
        fd = _continue_part(part_path, skeleton, part, plan.pending)
    else:
        fd = _begin_part(part_path, skeleton, plan, donors, areas)
    return OpenPart(fd, areas, skeleton.extents["row_crc"], identity_of(path))


def _file_to_be(path: str, plan: MergePlan, donors: Sequence[Donor], layout: Layout) -> tuple[Skeleton, Donor | None]:
    """The file for a plan, and the run in progress if it goes on with that; refused where the disk has no room for it."""
    skeleton = build_skeleton(layout, plan.table)
    part = next((donor for donor in donors if donor.path == part_path_of(path) and _is_same_file(skeleton, plan, donor)), None)
    held = 0 if part is None else os.fstat(part.fd).st_blocks * 512
    disk.ensure_space(path, skeleton.nbytes, held + skeleton.extents["error"].nbytes)  # texts of errors stay a hole: they are rare
    return skeleton, part


def _is_same_file(skeleton: Skeleton, plan: MergePlan, part: Donor) -> bool:
    """Whether the run in progress has exactly the layout of the target; the part is always donor 0."""
    same_bytes = (skeleton.layout_crc, skeleton.nbytes, skeleton.extents) == (
        part.header.layout_crc,
        part.header.nbytes,
        part.header.extents,
    )
    return same_bytes and bool((plan.source <= 0).all())


def _continue_part(part_path: str, skeleton: Skeleton, part: Donor, pending: NDArray[np.int64]) -> int:
    fd = os.open(part_path, os.O_RDWR)
    try:
        stale = pending[part.crcs[pending] != 0]  # torn rows, and failed ones that are tried again
        for row in stale.tolist():
            disk.write_all(fd, b"\0\0\0\0", skeleton.extents["row_crc"].offset + 4 * row)
        _reserve(fd, part_path, skeleton)
        disk.sync_data(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _begin_part(part_path: str, skeleton: Skeleton, plan: MergePlan, donors: Sequence[Donor], areas: Sequence[RowArea]) -> int:
    """Lay out a new part under a name of its own, with all rows that can be kept, and only then let it take the place of the old one."""
    new_path = f"{part_path}.new.{os.getpid()}"
    fd = os.open(new_path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _reserve(fd, new_path, skeleton)
        for offset, page in skeleton.content.written():
            disk.write_all(fd, page, offset)
        _copy_rows(fd, skeleton, areas, donors, plan)
        disk.sync_file(fd)
        disk.rename(new_path, part_path)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new_path)
        raise
    return fd


def _reserve(fd: int, name: str, skeleton: Skeleton) -> None:
    """Have the disk set aside room for all rows, so that a full disk shows now and not in the middle of the run."""
    place = os.fstatvfs(fd)
    held = os.fstat(fd).st_blocks * 512
    try:
        os.ftruncate(fd, skeleton.nbytes)
        for dataset, extent in skeleton.extents.items():
            if dataset != "error":  # stays a hole: a text is rare
                disk.reserve(fd, extent.offset, extent.nbytes)
    except OSError as error:
        reason = disk.store_error(error, f"reserve room for `{name}`")
        free = place.f_bavail * place.f_frsize
        missing = skeleton.nbytes - skeleton.extents["error"].nbytes - held
        raise StoreError(f"{reason.message} (needs {missing:,} bytes, the disk has {free:,} free)", hint=reason.hint) from error


def _copy_rows(fd: int, skeleton: Skeleton, areas: Sequence[RowArea], donors: Sequence[Donor], plan: MergePlan) -> None:
    """Copy rows, already checked, with their checksums."""
    for number in range(len(donors)):
        assert bool((np.diff(plan.source_row[plan.source == number]) > 0).all()), "rows of a donor keep their order: all keys are sorted"
    places = [[*donor.header.areas, _crc_area(donor.header.extents)] for donor in donors]
    for ours, *theirs in zip([*areas, _crc_area(skeleton.extents)], *places, strict=True):
        copy = _copy_even if ours.starts is None else _copy_ragged
        copy(fd, ours, [(donor.fd, each) for donor, each in zip(donors, theirs, strict=True)], plan)


def _crc_area(extents: dict[str, Extent]) -> RowArea:
    return RowArea("row_crc", extents["row_crc"].offset, 4, None)


def _copy_even(fd: int, ours: RowArea, donors: Sequence[tuple[int, RowArea]], plan: MergePlan) -> None:
    """Copy rows of one length a block at a time, as the rows of shards take turns: one by one would be a system call or two for each."""
    step = max(1, COPY_NBYTES // ours.item_nbytes)
    for start in range(0, len(plan.source), step):
        source, source_row = plan.source[start : start + step], plan.source_row[start : start + step]
        block = np.zeros((len(source), ours.item_nbytes), np.uint8)
        for number, (donor_fd, theirs) in enumerate(donors):
            places = np.flatnonzero(source == number)
            rows = source_row[places]
            for first, last in stretches(rows, ours.item_nbytes, COPY_NBYTES):
                offset, nbytes = theirs.span(int(rows[first]), int(rows[last - 1]) + 1)
                held = np.frombuffer(disk.read_exactly(donor_fd, nbytes, offset), np.uint8).reshape(-1, ours.item_nbytes)
                block[places[first:last]] = held[rows[first:last] - rows[first]]
        taken = np.flatnonzero(source != TO_COMPUTE)
        if ours.name == "error":  # stays a hole where there is no text
            taken = taken[block[taken].any(axis=1)]
        for first, last in runs(taken):
            begin, end = int(taken[first]), int(taken[last - 1]) + 1
            disk.write_all(fd, block[begin:end], ours.span(start + begin, start + end)[0])


def _copy_ragged(fd: int, ours: RowArea, donors: Sequence[tuple[int, RowArea]], plan: MergePlan) -> None:
    """Copy rows of different lengths, in stretches as long as they are neighbours in both files."""
    for number, (donor_fd, theirs) in enumerate(donors):
        targets = np.flatnonzero(plan.source == number)
        origins = plan.source_row[targets]
        for first, last in runs(targets, origins):
            target, origin = int(targets[first]), int(origins[first])
            for begin, end in row_blocks([theirs], last - first, start=origin):
                content = disk.read_exactly(donor_fd, *reversed(theirs.span(begin, end)))
                disk.write_all(fd, content, ours.span(target + begin - origin, target + end - origin)[0])
