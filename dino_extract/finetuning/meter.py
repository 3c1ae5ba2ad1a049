"""Means and speed between two lines of a run's figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch import Tensor

from dino_extract.finetuning.objective import Losses

TERMS = tuple(field.name for field in fields(Losses))


class Meter:
    """Collects the measurements of each step without making a GPU wait for them.

    Args:
        global_batch: images of one optimizer step, over all ranks.
    """

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._losses: list[Tensor] = []
        self._norms: dict[str, Tensor] = {}
        self.start()

    def start(self) -> None:
        """Start timing."""
        self._start, self._wait_s, self._untimed = time.monotonic(), 0.0, len(self._losses)

    def pending(self) -> Tensor:
        """The terms of the loss of each step since the last line, (steps, terms) float32."""
        return torch.stack(self._losses) if self._losses else torch.empty(0, len(TERMS))

    def resume(self, pending: Tensor) -> None:
        """Continue an interval from its `pending` terms; its line is the same, but its speed is that of the steps to come."""
        self._losses = list(pending)
        self.start()

    def add(self, losses: Losses, norms: dict[str, Tensor]) -> None:
        """Add one optimizer step."""
        self._losses.append(torch.stack([getattr(losses, name).detach() for name in TERMS]))
        self._norms = norms

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as spent waiting for images."""
        start = time.monotonic()
        yield
        self._wait_s += time.monotonic() - start

    def means(self) -> Tensor:
        """Each term of the loss, (terms,) float32."""
        return torch.stack(self._losses).mean(dim=0)

    def norms(self) -> dict[str, float]:
        """Gradient norms of the last step."""
        return {f"grad_norm_{name}": round(float(norm), 6) for name, norm in self._norms.items()}

    def restart(self) -> dict[str, float]:
        """Images per second over all ranks and the share of the time spent waiting for them; begins the next interval."""
        seconds, images, wait_s = time.monotonic() - self._start, (len(self._losses) - self._untimed) * self._global_batch, self._wait_s
        self._losses = []
        self.start()
        return {"images_per_s": round(images / seconds, 2), "input_wait_share": round(wait_s / seconds, 4)}
