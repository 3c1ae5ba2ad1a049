"""Power cuts, simulated: the disk keeps what was synced, and of the rest any pages it likes."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dino_extract.store import committer, disk, open_writer, verify_store
from tests.store.sample import LAYOUT, fill, table, write_rows

_SECTOR = 512  # bytes that a disk writes all or not at all


@dataclass
class Recorder:
    """Every system call of a run, in the order it came back, and the rows acknowledged in between."""

    events: list[tuple[object, ...]] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Listen to the calls of `dino_extract.store.disk`."""

        def pwrite(fd: int, content: memoryview, offset: int) -> int:
            self.events.append(("write", os.fstat(fd).st_ino, offset, bytes(content)))
            return os.pwrite(fd, content, offset)

        def sync(fd: int) -> None:
            os.fsync(fd)
            self.events.append(("sync", os.fstat(fd).st_ino, os.fstat(fd).st_size))

        def replace(source: str, target: str) -> None:
            self.events.append(("rename", os.stat(source).st_ino, os.path.basename(source), os.path.basename(target)))
            os.replace(source, target)

        monkeypatch.setattr(disk, "pwrite", pwrite)
        monkeypatch.setattr(disk, "fdatasync", sync)
        monkeypatch.setattr(disk, "fsync", sync)
        monkeypatch.setattr(disk, "replace", replace)
        monkeypatch.setattr(committer, "COMMIT_INTERVAL_S", 0.0)


def disk_after_cut(events: list[tuple[object, ...]], folder_inode: int, old: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """Files and their bytes after the power went at the end of `events`: synced writes whole, others by sectors at random."""
    content: dict[int, bytearray] = {}
    unsynced: dict[int, list[tuple[int, bytes]]] = {}
    names: dict[str, bytes | int] = dict(old)
    unsynced_names: list[tuple[str, str, int]] = []
    for kind, inode, *rest in events:
        assert isinstance(inode, int)
        if kind == "write":
            unsynced.setdefault(inode, []).append((rest[0], rest[1]))  # type: ignore[arg-type]
        elif kind == "rename":
            unsynced_names.append((rest[0], rest[1], inode))  # type: ignore[arg-type]
        elif kind == "sync" and inode == folder_inode:
            rename(names, unsynced_names)
            unsynced_names = []
        elif kind == "sync":
            file = content.setdefault(inode, bytearray())
            file.extend(bytes(max(0, rest[0] - len(file))))  # type: ignore[operator]
            for offset, written in unsynced.pop(inode, []):
                file[offset : offset + len(written)] = written
    rename(names, unsynced_names[: rng.randint(0, len(unsynced_names))])
    for inode, writes in unsynced.items():
        for offset, written in writes:
            keep_some_sectors(content.get(inode), offset, written, rng)
    return {name: bytes(content[place]) if isinstance(place, int) else place for name, place in names.items()}


def rename(names: dict[str, bytes | int], renames: list[tuple[str, str, int]]) -> None:
    """Let the disk have renamed files: (old name, new name, inode)."""
    for source, target, inode in renames:
        names.pop(source, None)
        names[target] = inode


def keep_some_sectors(file: bytearray | None, offset: int, written: bytes, rng: random.Random) -> None:
    """Let the disk have written some sectors of a write that was never synced."""
    end = offset + len(written)
    chance = rng.choice([0.0, 0.5, 1.0])
    while file is not None and offset < end:
        stop = min(end, (offset // _SECTOR + 1) * _SECTOR)
        if rng.random() < chance:
            file[offset:stop] = written[offset - (end - len(written)) : stop - (end - len(written))]
        offset = stop


def record_run(path: Path, num_rows: int, recorder: Recorder) -> None:
    """One undisturbed run, acknowledging rows as they are committed."""
    with open_writer(path, table(num_rows), LAYOUT) as writer:
        for start in range(0, len(writer.pending), 6):
            write_rows(writer, writer.pending[start : start + 6])
            if start % 5 == 0:
                writer.flush()
            count = writer.committed - writer.reused
            recorder.events.append(("ack", 0, [writer.keys[row] for row in writer.pending[:count]]))
        writer.finish()
    recorder.events.append(("ack", 0, list(writer.keys)))


@pytest.mark.parametrize("kept", [0, 40], ids=["first run", "update"])
@pytest.mark.parametrize("cuts", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_power_cut_loses_no_acknowledged_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int, kept: int) -> None:
    """Whenever the power goes, acknowledged rows are there, a finished file stays whole, and the next run ends in the same bytes."""
    rng = random.Random(cuts + kept)
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    if kept:
        with open_writer(recorded / "out.h5", table(kept), LAYOUT) as writer:
            fill(writer)
            writer.finish()
    old = {name: (recorded / name).read_bytes() for name in os.listdir(recorded)}
    recorder = Recorder()
    with monkeypatch.context() as patches:
        recorder.install(patches)
        record_run(recorded / "out.h5", 90, recorder)
    expected = (recorded / "out.h5").read_bytes()

    for cut in range(cuts):
        happened = recorder.events[: rng.randint(0, len(recorder.events))]
        acked = next((set(event[2]) for event in reversed(happened) if event[0] == "ack"), set())  # type: ignore[call-overload]
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        for name, content in disk_after_cut(happened, recorded.stat().st_ino, old, rng).items():
            (folder / name).write_bytes(content)
        assert not (kept and not verify_store(folder / "out.h5").is_intact), "the finished file is damaged"

        with open_writer(folder / "out.h5", table(90), LAYOUT) as writer:
            recomputed = acked & set(fill(writer))
            writer.finish()

        assert not recomputed, f"cut {cut} after {len(happened)} calls lost {sorted(recomputed)}"
        assert (folder / "out.h5").read_bytes() == expected
        (folder / "out.h5").unlink()
