"""What one check of the machine has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dino_extract.results import Result

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True, repr=False)
class Finding(Result):
    """The result of one check.

    Args:
        name: what was checked.
        verdict: `ok`, `note`, or `problem`.
        found: what is there.
        advice: what to do about a problem.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""

    def summary(self) -> str:
        """The finding on one line."""
        return f"{self.verdict}: {self.name}, {self.found}"
