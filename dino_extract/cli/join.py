"""`join`: several files into one."""

from __future__ import annotations

from typing import Annotated

import typer

import dino_extract as dx
from dino_extract.cli.options import AsJson, Overwrite, Quiet, print_json, say
from dino_extract.names import counted

EXAMPLES = """Examples:
  for i in 1 2 3 4; do dino-extract embed photos/ --shard $i/4 & done; wait
  dino-extract join photos.*-of-4.h5 -o photos.h5"""


def join(
    files: Annotated[list[str], typer.Argument(metavar="FILE.h5...", help="Finished files that were made with the same settings.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE.h5", help="The file to write.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Join files into one: the shards of `embed --shard`, or folders that were embedded one by one.

    All shards of a run give the file that one run would have made. `embed` without `--shard` keeps it up to date.
    """
    result = dx.join(files, output, overwrite=overwrite)
    if not quiet:
        repeated = f", {counted(result.repeated, 'row')} left out because another file has the same path" if result.repeated else ""
        say(f"{counted(result.files, 'file')}: {counted(result.total, 'image')}, {result.failed:,} failed{repeated}")
    print_json(result) if as_json else print(result.path)
