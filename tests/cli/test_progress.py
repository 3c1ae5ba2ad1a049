"""Progress fits where it goes."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys

import pytest

from dino_extract.cli.progress import BYTES, Lines, choose_progress


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_a_log_gets_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """A line says what is done, the rate since this run began, and the time left."""
    clock = [100.0]
    lines = Lines("images", clock=lambda: clock[0])

    for seconds, done in ((100, 1000), (120, 1200), (131, 1310), (140, 1400), (162, 1620)):
        clock[0] = seconds
        lines(done, 1_001_620, 3)

    assert capsys.readouterr().err.splitlines() == [
        "1,310 of 1,001,620 images, 10.0/s, 27:47:11 left, 3 failed",
        "1,620 of 1,001,620 images, 10.0/s, 27:46:40 left, 3 failed",
    ]


def test_a_log_of_a_download_counts_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the model whose weights are downloaded."""
    clock = [0.0]
    lines = Lines(BYTES, "vits14", lambda: clock[0])

    clock[0] = 31
    lines(44_000_000, 88_000_000)

    assert capsys.readouterr().err == "vits14: 44 of 88 MB\n"


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--quiet` nothing is printed."""
    with choose_progress(quiet=True) as silent:
        silent(1, 2)

    assert capsys.readouterr().err == ""


def test_the_bar_is_there_before_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a call with nothing done draws the bar."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    with choose_progress(quiet=False) as bar:
        bar(0, 800)
        drawn = terminal.getvalue()

    assert "0/800" in drawn


def test_an_interrupted_bar_leaves_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an exception the line of the bar is empty, for the words that follow."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    with contextlib.suppress(KeyboardInterrupt), choose_progress(quiet=False) as bar:
        bar(16, 800)
        raise KeyboardInterrupt

    *_, last = terminal.getvalue().split("\r")
    assert (last.strip(), terminal.getvalue().endswith("\n")) == ("", False)


LOSES_A_SIGNAL = """
import signal, sys
from dino_extract import cli
from dino_extract.cli import app as commands
from dino_extract.cli.progress import choose_progress

@commands.app.command("work")
def work() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException:
        pass  # as C code does that calls Python
    choose_progress(quiet=%s)(1, 2)
    print("went on")

sys.argv = ["dino-extract", "work"]
cli.main()
"""


@pytest.mark.parametrize("quiet", [True, False])
def test_work_ends_even_if_the_exception_of_a_signal_was_lost(quiet: bool) -> None:
    """A command that was told to stop stops at its next progress, with the exit code of the signal."""
    done = subprocess.run([sys.executable, "-c", LOSES_A_SIGNAL % quiet], capture_output=True, text=True)

    assert done.returncode == 75
    assert "interrupted" in done.stderr
    assert "went on" not in done.stdout
