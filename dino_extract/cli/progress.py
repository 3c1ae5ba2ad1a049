"""Progress on stderr: a bar on a terminal, one plain line every 30 seconds elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from tqdm import tqdm

LINE_EVERY_S = 30.0


class RunProgress(Protocol):
    """What a workflow tells about how far it is."""

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Note that `done` of `total` images are finished, `failed` of them without an embedding."""


class Bar:
    """A progress bar that redraws itself in place."""

    def __init__(self, unit: str) -> None:
        self._bar: tqdm[None] | None = None
        self._unit = unit

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Move the bar."""
        if self._bar is None:
            self._bar = tqdm(total=total, initial=done, unit=f" {self._unit}", file=sys.stderr, dynamic_ncols=True, smoothing=0.1)
        self._bar.update(done - self._bar.n)
        if failed:
            self._bar.set_postfix_str(f"{failed:,} failed", refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands and end its line."""
        if self._bar is not None:
            self._bar.close()


class Lines:
    """A plain line every 30 seconds, for logs."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._first: tuple[float, int] | None = None
        self._printed_at = time.monotonic()

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Print a line if the last is old enough."""
        now = time.monotonic()
        self._first = self._first or (now, done)
        if now - self._printed_at < LINE_EVERY_S:
            return
        self._printed_at = now
        rate = (done - self._first[1]) / max(now - self._first[0], 1e-9)
        left = f", {tqdm.format_interval((total - done) / rate)} left" if rate > 0 else ""
        print(f"{done:,} of {total:,} {self._unit}, {rate:,.1f}/s{left}, {failed:,} failed", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to end."""


class Silent:
    """No progress at all."""

    def __call__(self, done: int, total: int, failed: int) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Nothing to end."""


def choose_progress(*, quiet: bool, unit: str = "images") -> Bar | Lines | Silent:
    """The kind of progress that fits where stderr goes."""
    if quiet:
        return Silent()
    return Bar(unit) if sys.stderr.isatty() else Lines(unit)
