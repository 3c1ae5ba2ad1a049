"""`embed` killed at random moments loses nothing, computes nothing twice, and ends with the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dino_extract.store import open_store, part_path_of
from tests.sample_images import save_pictures

NUM_PICTURES = 240
COMMAND = [sys.executable, "-c", "from dino_extract.cli import main; main()"]
WORDS = [
    "embed",
    "photos",
    "-o",
    "x.h5",
    "--json",
    "--model",
    "tiny",
    "--random-weights",
    "0",
    "--size",
    "56",
    "--batch",
    "4",
    "--workers",
    "1",
]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A real `dino-extract embed` in a process group of its own."""
    return subprocess.Popen([*COMMAND, *WORDS], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def finish(folder: Path) -> dict[str, Any]:
    """The result of a run that nobody disturbs."""
    process = start(folder)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(out)


def num_committed(folder: Path) -> int:
    """Rows that are safe on disk now."""
    for path in (str(folder / "x.h5"), part_path_of(folder / "x.h5")):
        if os.path.exists(path):
            with open_store(path) as store:
                return store.progress[0]
    return 0


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_until(num_kills: int, folder: Path, seed: int) -> None:
    """Kill runs, restart them, and check each finished file, until `num_kills` have hit a living process."""
    save_pictures(folder / "photos", range(NUM_PICTURES), side=120)
    started = time.monotonic()
    finish(folder)
    duration = time.monotonic() - started
    undisturbed = digest(folder / "x.h5")
    (folder / "x.h5").unlink()
    moments = random.Random(seed)
    kills, committed = 0, 0
    while kills < num_kills:
        process = start(folder)
        try:
            out, _ = process.communicate(timeout=moments.uniform(0, duration))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            now = num_committed(folder)
            assert now >= committed, f"kill {kills}: {committed} rows were committed, {now} are left"
            committed = now
            continue
        result = json.loads(out)
        assert (process.returncode, result["reused"]) == (0, committed), "every committed row is kept, and no other is"
        assert digest(folder / "x.h5") == undisturbed
        (folder / "x.h5").unlink()
        committed = 0
    assert finish(folder)["reused"] == committed
    assert digest(folder / "x.h5") == undisturbed
    assert sorted(os.listdir(folder)) == ["photos", "x.h5"], "no lock and no part is left behind"


def test_a_few_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Six SIGKILLs of a real run, then a finished file equal to the undisturbed one."""
    kill_until(6, tmp_path, seed=int.from_bytes(os.urandom(4), "big"))


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """The same with 120 SIGKILLs."""
    kill_until(120, tmp_path, seed=int.from_bytes(os.urandom(4), "big"))
