"""Checkpoints are complete or absent."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from dino_extract.errors import CheckpointError
from dino_extract.finetuning.checkpoint import Checkpoints


def test_the_newest_two_and_the_best_stay(tmp_path: Path) -> None:
    """Of four checkpoints the last two are kept, and the best one although it is older."""
    checkpoints = Checkpoints(tmp_path)

    for step in range(1, 5):
        checkpoints.save(step, {"step": step, "weight": torch.tensor([float(step)])})
        if step == 1:
            checkpoints.keep_as_best(step)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-0000003.pt", "step-0000004.pt"]
    assert checkpoints.read(checkpoints.best_path)["step"] == 1
    newest = checkpoints.newest()
    assert newest is not None
    assert newest["weight"].item() == 4


def no_hard_links(source: object, target: object) -> None:
    """What `os.link` does on exFAT."""
    raise PermissionError(errno.EPERM, "Operation not permitted", str(source), None, str(target))


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_the_best_is_kept_with_and_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_hard_links: bool) -> None:
    """The best checkpoint becomes another one, or the same once more, and nothing else stays in the folder."""
    if not has_hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    checkpoints = Checkpoints(tmp_path)

    for best in (1, 2, 2):
        checkpoints.save(best, {"step": best})
        checkpoints.keep_as_best(best)
        checkpoints.keep_as_best(best)

    assert checkpoints.read(checkpoints.best_path) == {"step": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-0000001.pt", "step-0000002.pt"]
    assert os.path.samefile(checkpoints.best_path, tmp_path / "step-0000002.pt") == has_hard_links


def test_a_copy_of_the_best_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no hard links and the disk is full, the error names the file, and the best one before is still there."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    checkpoints.keep_as_best(1)
    checkpoints.save(2, {"step": 2, "weight": torch.zeros(1_000_000)})
    monkeypatch.setattr(os, "link", no_hard_links)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"best\.pt` cannot be written: .*File too large"):
            checkpoints.keep_as_best(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert checkpoints.read(checkpoints.best_path) == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-0000001.pt", "step-0000002.pt"]


def test_a_half_written_file_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    """What a killed save left behind is passed over."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"step": 3})
    (tmp_path / "step-0000004.tmp").write_bytes(b"half")

    newest = checkpoints.newest()

    assert newest is not None
    assert newest["step"] == 3


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    """A run that has not been saved starts from the beginning."""
    assert Checkpoints(tmp_path / "absent").newest() is None


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """A file that is not a checkpoint is an error with its path and what to do."""
    (tmp_path / "step-0000001.pt").write_bytes(b"not a checkpoint")

    with pytest.raises(CheckpointError, match=r"step-0000001\.pt` cannot be read") as damaged:
        Checkpoints(tmp_path).newest()

    assert damaged.value.hint == "remove it to continue from the one before"


def test_a_disk_that_is_full_is_named_and_costs_nothing(tmp_path: Path) -> None:
    """A state larger than a file may be is an error with its path; the one before stays, and nothing half written does."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step-0000002\.pt` cannot be written: .*File too large"):
            checkpoints.save(2, {"step": 2, "weight": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    newest = checkpoints.newest()
    assert newest is not None
    assert newest["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.pt"]
