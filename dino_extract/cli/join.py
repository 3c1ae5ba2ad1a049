"""`join`: several files into one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

EXAMPLES = """Examples:

  for i in 1 2 3 4; do CUDA_VISIBLE_DEVICES=$((i - 1)) dino-extract embed photos/ --shard $i/4 & done; wait

  dino-extract join photos.*-of-4.h5 -o photos.h5"""


def join(
    files: Annotated[list[str], typer.Argument(metavar="FILE.h5...", help="Finished files, embedded with the same settings.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE.h5", help="The file to be made.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Put files together into one: the shards of `embed --shard`, or folders that were embedded one by one.

    All shards of a run give the file that one run would have made; `embed` without `--shard` keeps it up to date.
    """
    from dino_extract.store import join_stores  # loads h5py, which `--help` must not wait for

    result = join_stores(files, output, overwrite=overwrite)
    repeated = f", {result.repeated:,} rows left out whose path another file has" if result.repeated else ""
    typer.echo(f"{result.files:,} files: {result.total:,} images, {result.failed:,} failed{repeated}", err=True)
    typer.echo(json.dumps(asdict(result), indent=2) if as_json else result.path)
