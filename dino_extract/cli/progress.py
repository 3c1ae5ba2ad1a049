"""Progress on stderr: a bar on a terminal, one plain line every 30 seconds elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from dino_extract.cli import raise_lost_signal

LINE_EVERY_S = 30.0
BYTES = "bytes"  # the unit of a download


class Silent:
    """No progress at all."""

    def __call__(self, done: int, total: int, failed: int = 0) -> None:
        """Note that `done` of `total` are finished, `failed` of them without a result. A signal ends the work here at the latest."""
        raise_lost_signal()

    def close(self) -> None:
        """End the line that is being drawn."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Bar(Silent):
    """A progress bar that redraws itself in place; it disappears when the work is interrupted or fails."""

    def __init__(self, unit: str, title: str) -> None:
        self._bar: tqdm[None] | None = None
        self._unit = unit
        self._title = title or None

    def __call__(self, done: int, total: int, failed: int = 0) -> None:
        """Move the bar."""
        super().__call__(done, total, failed)
        if self._bar is None:
            unit = {"unit": "B", "unit_scale": True} if self._unit == BYTES else {"unit": f" {self._unit}"}
            self._bar = tqdm(
                total=total, initial=done, desc=self._title, file=sys.stderr, dynamic_ncols=True, smoothing=0.1, delay=0, **unit
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if failed:
            self._bar.set_postfix_str(f"{failed:,} failed", refresh=False)

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        if self._bar is not None:
            self._bar.close()

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None and exc[0] is not None:
            self._bar.leave = False
        self.close()


class Lines(Silent):
    """A plain line every 30 seconds, for logs.

    Args:
        unit: what is counted.
        title: begins each line.
        clock: seconds that never go back.
    """

    def __init__(self, unit: str, title: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._unit = unit
        self._title = f"{title}: " if title else ""
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._printed_at = clock()

    def __call__(self, done: int, total: int, failed: int = 0) -> None:
        """Print a line if the last is old enough."""
        super().__call__(done, total, failed)
        now = self._clock()
        self._first = self._first or (now, done)
        if now - self._printed_at < LINE_EVERY_S:
            return
        self._printed_at = now
        if self._unit == BYTES:
            text = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        else:
            rate = (done - self._first[1]) / max(now - self._first[0], 1e-9)
            left = f", {tqdm.format_interval((total - done) / rate)} left" if rate > 0 else ""
            text = f"{done:,} of {total:,} {self._unit}, {rate:,.1f}/s{left}, {failed:,} failed"
        print(f"{self._title}{text}", file=sys.stderr, flush=True)


def choose_progress(*, quiet: bool, unit: str = "images", title: str = "") -> Silent:
    """The kind of progress that fits where stderr goes.

    Args:
        quiet: show nothing.
        unit: what is counted, or `BYTES`.
        title: what is being done, such as the name of a file that is downloaded.
    """
    if quiet:
        return Silent()
    return Bar(unit, title) if sys.stderr.isatty() else Lines(unit, title)
