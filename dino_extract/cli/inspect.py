"""`info` and `verify`: what is in a file, and whether it is as it was written."""

from __future__ import annotations

from typing import Annotated

import typer

import dino_extract as dx
from dino_extract.cli.options import AsJson, Device, print_json
from dino_extract.config import EmbedOptions
from dino_extract.errors import ExitCode
from dino_extract.names import printable

File = Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made by `dino-extract embed`, finished or not.")]

INFO_EXAMPLES = """Examples:
  dino-extract info photos.h5
  dino-extract info photos.h5 --failures"""

VERIFY_EXAMPLES = """Examples:
  dino-extract verify photos.h5
  dino-extract verify photos.h5 --rows 0  # checksums alone: needs neither images nor model"""


def info(
    path: File,
    failures: Annotated[
        bool, typer.Option("--failures", help="List only the failed images: path, status and error, separated by tabs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a file holds and how it was made. While a run goes on, show how far it is."""
    if failures:
        with dx.open(path) as store:
            rows = [{"path": path, "status": status.name.lower(), "error": error} for path, status, error in store.failures]
        if as_json:
            print_json(rows)
        for row in rows if not as_json else []:
            print("\t".join(map(printable, row.values())))
        return
    facts = dx.info(path)
    print_json(facts) if as_json else print(facts.text())


def verify(
    path: File,
    rows: Annotated[int, typer.Option(min=0, help="How many random rows are embedded again. 0 checks the file alone.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choice of rows.")] = 0,
    weights: Annotated[str | None, typer.Option(metavar="PATH", help="The checkpoint, if it was moved since.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Check every byte of a file against its checksums. Then embed some rows again and report the largest difference.

    The exit code is 1 if anything is damaged or different.
    """
    changes: EmbedOptions = {"device": device}
    if weights:
        changes["weights"] = weights
    result = dx.verify(path, rows=rows, seed=seed, **changes)
    print_json(result) if as_json else print(result.text())
    if not result.is_good:
        raise typer.Exit(ExitCode.ERROR)
