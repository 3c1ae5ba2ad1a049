"""The stages of embedding: how long a run waited for each, and what makes each faster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

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
