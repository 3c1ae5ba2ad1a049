"""What a run did: how long it waited for each stage, and what makes each faster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from dino_extract.names import counted
from dino_extract.results import Result, shown

ADVICE_FROM_S = 30.0  # a shorter run says nothing about what would make it faster

# What would make a stage faster; the sentence goes on with "would help".
REMEDIES = {
    "read": "a faster disk, `.tar` archives, or over a network more `--workers`",
    "decode": "more CPU cores, smaller files, or for large JPEGs `--fast-decode`",
    "resize": "more CPU cores, or smaller images",
    "model": "a GPU, a smaller `--model` or a smaller `--size`",
    "write": "a faster disk, `--store-dtype float16` or fewer `--tokens`",
}

_WORK = {
    "read": "images, above all to reading them",
    "decode": "images, above all to decoding them",
    "model": "the model",
    "write": "writing",
}


@dataclass
class StageTimes:
    """Seconds that a run waited for each stage.

    Args:
        read: for the decoder processes, as far as they read.
        decode: for the decoder processes, as far as they decode and resize.
        model: for the model.
        write: for the disk.
    """

    read: float = 0.0
    decode: float = 0.0
    model: float = 0.0
    write: float = 0.0

    @contextmanager
    def waiting(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.monotonic()
        yield
        setattr(self, stage, getattr(self, stage) + time.monotonic() - start)

    def divide_input(self, read_s: float, decode_s: float) -> None:
        """Divide the time spent waiting for decoder processes as their own time was divided between reading and decoding."""
        waited = self.read + self.decode
        self.read = waited * read_s / max(read_s + decode_s, 1e-9)
        self.decode = waited - self.read

    def as_dict(self) -> dict[str, float]:
        """Seconds by stage, to milliseconds."""
        return {stage: round(seconds, 3) for stage, seconds in asdict(self).items()}


def advice(waited_s: dict[str, float], seconds: float) -> str:
    """A sentence about the stage that took the largest share of a run, and what makes it faster.

    Args:
        waited_s: seconds of waiting by stage; reading and decoding together are compared with the others.
        seconds: wall time of the run.
    """
    read, decode = waited_s["read"], waited_s["decode"]
    waited = {"read" if read > decode else "decode": read + decode} | {name: waited_s[name] for name in ("model", "write")}
    stage = max(waited, key=lambda name: waited[name])
    return f"{waited[stage] / max(seconds, 1e-9):.0%} of the time went to {_WORK[stage]}: {REMEDIES[stage]} would help"


@dataclass(frozen=True, repr=False)
class EmbedResult(Result):
    """What a run did.

    Args:
        path: the finished HDF5 file.
        total: rows in it.
        embedded: rows that this run did, failed ones among them.
        reused: rows kept from earlier runs.
        failed: rows without an embedding.
        gone: rows kept whose images are no longer in the sources.
        dropped: such rows that this run has left out, with `prune`.
        seconds: wall time of this run, without finding the images and loading the model.
        waited_s: seconds of it that were spent waiting, by what for: the decoder processes, divided into `read` and `decode` (which
            includes resizing there) as their own time was, the `model`, and the disk (`write`).
        first_failure: path of the first row without an embedding and the reason, or None.
    """

    path: str
    total: int
    embedded: int
    reused: int
    failed: int
    gone: int
    dropped: int
    seconds: float
    waited_s: dict[str, float]
    first_failure: str | None = None

    def summary(self) -> str:
        """Path and counts."""
        return f"{shown(self.path)}, {counted(self.total, 'image')}, {self.failed:,} failed"

    def text(self) -> str:
        """The result for people: counts, rate, and what bounded the run."""
        outcome = f"{self.total - self.failed:,} embedded, {self.failed:,} failed"
        if self.first_failure is not None:
            outcome += f" (the first: {self.first_failure})"
        counts = f"{self.path}: {counted(self.total, 'image')}, {outcome}; {self.embedded:,} done now, {self.reused:,} kept"
        if self.gone:
            counts += f", {self.gone:,} of them of deleted images (`--prune` drops these)"
        if self.dropped:
            counts += f", {self.dropped:,} dropped"
        if not self.embedded:
            return counts if self.dropped else f"{counts}, nothing was left to do"
        rate = self.embedded / max(self.seconds, 1e-9)
        speed = f"{counts}\n{self.seconds:,.1f} s, {rate:,.1f} images/s"
        return speed if self.seconds < ADVICE_FROM_S else f"{speed}; {advice(self.waited_s, self.seconds)}"
