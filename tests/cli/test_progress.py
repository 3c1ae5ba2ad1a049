"""Progress fits where it goes."""

from __future__ import annotations

import pytest

from dino_extract.cli import progress
from dino_extract.cli.progress import Lines, Silent, choose_progress


def test_a_log_gets_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal: what is done, the rate since this run began, and the time left as a clock shows it."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = choose_progress(quiet=False)
    assert isinstance(lines, Lines)

    for seconds, done in ((100, 1000), (120, 1200), (131, 1310), (140, 1400), (162, 1620)):
        clock[0] = seconds
        lines(done, 1_001_620, 3)

    assert capsys.readouterr().err.splitlines() == [
        "1,310 of 1,001,620 images, 10.0/s, 27:47:11 left, 3 failed",
        "1,620 of 1,001,620 images, 10.0/s, 27:46:40 left, 3 failed",
    ]


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--quiet` nothing is printed."""
    silent = choose_progress(quiet=True)
    assert isinstance(silent, Silent)

    silent(1, 2, 0)

    assert capsys.readouterr().err == ""
