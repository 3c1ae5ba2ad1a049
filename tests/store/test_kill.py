from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("kills", "seed"), [(25, 0), pytest.param(500, 1, marks=pytest.mark.slow)])
def test_killed_runs_lose_nothing(tmp_path: Path, kills: int, seed: int) -> None:
    """Runs killed at random moments end in the undisturbed run's bytes, and compute no acknowledged row again."""
    command = [sys.executable, "-m", "tests.store.crash", "--kills", str(kills), "--seed", str(seed), "--folder", str(tmp_path)]

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)

    counts = json.loads(done.stdout)
    assert counts.pop("kills") >= kills
    assert counts.pop("files") >= 1
    assert counts == {"mismatches": 0, "recomputed": 0, "wrong_rows": 0, "failed_children": 0, "broken_finished": 0}
