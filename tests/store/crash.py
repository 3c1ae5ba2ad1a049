"""Kills a writer again and again at random moments, and counts what was lost.

    python -m tests.store.crash --kills 1000 --seed 1 --folder /tmp/crash

Each file is written by child processes that are killed with SIGKILL until one of them finishes. The child notes in a log every row it
computes, and, after `Writer.committed` has advanced, every row it counts as committed. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from dino_extract.status import Status
from dino_extract.store import Layout, RowDataset, RowTable, committer, open_writer, verify_store

LAYOUT = Layout((RowDataset("features", (96,), "float32"), RowDataset("patch_features", (2, 2, 24), "float16")), {"model": "x"}, ("model",))
NUM_ROWS = 1000
BATCH = 8


def table(num_rows: int) -> RowTable:
    """Rows whose keys and identity follow from their number."""
    return RowTable([f"{row:06}".encode() for row in range(num_rows)], np.arange(num_rows), np.arange(num_rows))


def values(keys: list[bytes], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Every element of a row is derived from its key."""
    codes = np.array([int(key) for key in keys], np.int64)
    width = int(np.prod(shape))
    return ((codes[:, None] * 31 + np.arange(width)) % 1999).astype(dtype).reshape(len(keys), *shape)


def write_store(path: Path, num_rows: int, log_path: Path, pause_s: float = 0.0) -> None:
    """Write the pending rows in a tight loop, noting `c<row>` before a row is computed and `a<row>` when it is committed."""
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with open_writer(path, table(num_rows), LAYOUT) as writer:
        acked = 0

        def acknowledge() -> None:
            nonlocal acked
            done = writer.committed - writer.reused
            if done > acked:
                os.write(log, b"".join(b"a%d\n" % row for row in writer.pending[acked:done]))
                acked = done

        for start in range(0, len(writer.pending), BATCH):
            rows = writer.pending[start : start + BATCH]
            os.write(log, b"".join(b"c%d\n" % row for row in rows))
            keys = [writer.keys[row] for row in rows]
            status = [Status.UNREADABLE if row % 13 == 5 else Status.OK for row in rows]
            errors = ["decode: DecodeError: no image" if each != Status.OK else "" for each in status]
            arrays = {dataset.name: values(keys, dataset.shape, dataset.dtype) for dataset in LAYOUT.datasets}
            writer.write(rows, arrays, image_size=np.ones((len(rows), 2), np.int32), status=status, errors=errors)
            acknowledge()
            time.sleep(pause_s)
        writer.flush()
        acknowledge()
        writer.finish()


def recomputed_rows(log_path: Path) -> int:
    """How many rows were computed again after they had been acknowledged."""
    acked: set[bytes] = set()
    count = 0
    for line in log_path.read_bytes().splitlines():
        if line[:1] == b"a":
            acked.add(line[1:])
        elif line[1:] in acked:
            count += 1
    return count


def wrong_rows(path: Path) -> int:
    """How many rows plain h5py sees as committed and OK, but with other numbers than were computed."""
    with h5py.File(path, "r", locking=False) as file:
        rows = np.flatnonzero((file["row_crc"][:] != 0) & (file["status"][:] == Status.OK))
        keys = [file["paths"][:].tolist()[row] for row in rows]
        return sum(int((file[each.name][:][rows] != values(keys, each.shape, each.dtype)).sum()) for each in LAYOUT.datasets)


def run_child(path: Path, num_rows: int, log_path: Path) -> int:
    """Start a writing child process, forked so that it writes at once."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            committer.COMMIT_INTERVAL_S = 0.004  # many commits per second: many moments to be killed in
            write_store(path, num_rows, log_path, pause_s=0.0003)
            code = 0
        finally:
            os._exit(code)
    return pid


def crash_until_finished(folder: Path, sizes: list[int], rng: random.Random, expected: str) -> dict[str, int]:
    """Write one file, then update it to each next size, killing at random moments; gives counts of what happened."""
    counts = {"kills": 0, "mismatches": 0, "recomputed": 0, "wrong_rows": 0, "failed_children": 0, "broken_finished": 0}
    path = folder / "out.h5"
    for step, num_rows in enumerate(sizes):
        log_path = folder / f"log{step}"
        longest_s = 0.1
        while True:
            pid = run_child(path, num_rows, log_path)
            # half of the moments while the file is opened, half while rows are written
            time.sleep(rng.uniform(0, 0.01) if rng.random() < 0.5 else rng.uniform(0, longest_s))
            longest_s *= 1.1  # on a busy machine, too, one child comes to its end
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            part = Path(f"{path}.part")
            if part.exists():
                counts["wrong_rows"] += wrong_rows(part)
            if step and not verify_store(path).is_intact:
                counts["broken_finished"] += 1
            if os.WIFSIGNALED(status):
                counts["kills"] += 1
            else:
                counts["failed_children"] += os.WEXITSTATUS(status) != 0
                break
        counts["recomputed"] += recomputed_rows(log_path)
    counts["mismatches"] += hashlib.sha256(path.read_bytes()).hexdigest() != expected
    counts["wrong_rows"] += wrong_rows(path)
    return counts


def crash(kills: int, seed: int, folder: Path) -> dict[str, int]:
    """Write and update files until `kills` children were killed."""
    rng = random.Random(seed)
    write_store(folder / "undisturbed.h5", NUM_ROWS, folder / "undisturbed.log")
    expected = hashlib.sha256((folder / "undisturbed.h5").read_bytes()).hexdigest()
    totals = {"files": 0}
    while totals.get("kills", 0) < kills:
        place = Path(tempfile.mkdtemp(dir=folder))
        # every second file is first finished with fewer images, and then updated
        sizes = [NUM_ROWS] if totals["files"] % 2 == 0 else [NUM_ROWS // 3, NUM_ROWS]
        for name, count in crash_until_finished(place, sizes, rng, expected).items():
            totals[name] = totals.get(name, 0) + count
        totals["files"] += 1
        for left in place.iterdir():
            left.unlink()
        place.rmdir()
    return totals


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="kill a store writer again and again, and count what was lost")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(crash(options.kills, options.seed, options.folder)))
