"""The commands and where they stand in `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from dino_extract import __version__
from dino_extract.cli import (
    attention,
    benchmark,
    cluster,
    dedup,
    doctor,
    embed,
    export,
    finetune,
    inspect,
    join,
    knn,
    linear,
    linear_dense,
    match,
    outliers,
    pca,
    report,
    search,
    weights,
)
from dino_extract.cli.help import Command, Group

NUMBERS = "After embedding: answers"
PICTURES = "After embedding: pictures and files"

app = typer.Typer(
    name="dino-extract",
    cls=Group,
    help="DINOv2 embeddings of image folders in crash-safe HDF5.",
    epilog="Start with `dino-extract embed photos/`, then `dino-extract info photos.h5`. `dino-extract help COMMAND` explains a command. "
    "Exit codes: 0 done, 1 error, 2 usage, 3 finished with failed images, 75 run again later, 130 interrupted.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "DINO_EXTRACT"},
)


def _add(command: Callable[..., Any], *, panel: str | None = None, examples: str | None = None) -> None:
    app.command(cls=Command, rich_help_panel=panel, epilog=examples)(command)


_add(embed.embed, examples=embed.EXAMPLES)
_add(join.join, examples=join.EXAMPLES)
_add(inspect.info, examples=inspect.INFO_EXAMPLES)
_add(inspect.verify, examples=inspect.VERIFY_EXAMPLES)
_add(finetune.finetune, examples=finetune.EXAMPLES)
app.add_typer(weights.app, name="weights")
_add(doctor.doctor, examples=doctor.EXAMPLES)
_add(benchmark.benchmark, examples=benchmark.EXAMPLES)
_add(knn.knn, panel=NUMBERS, examples=knn.EXAMPLES)
_add(linear.linear, panel=NUMBERS, examples=linear.EXAMPLES)
_add(linear.classify, panel=NUMBERS, examples=linear.CLASSIFY_EXAMPLES)
_add(linear_dense.linear_dense, panel=NUMBERS, examples=linear_dense.EXAMPLES)
_add(search.search, panel=NUMBERS, examples=search.EXAMPLES)
_add(dedup.dedup, panel=NUMBERS, examples=dedup.EXAMPLES)
_add(outliers.outliers, panel=NUMBERS, examples=outliers.EXAMPLES)
_add(cluster.cluster, panel=NUMBERS, examples=cluster.EXAMPLES)
_add(cluster.curate, panel=NUMBERS, examples=cluster.CURATE_EXAMPLES)
_add(pca.pca, panel=PICTURES, examples=pca.EXAMPLES)
_add(match.match, panel=PICTURES, examples=match.EXAMPLES)
_add(attention.attention, panel=PICTURES, examples=attention.EXAMPLES)
_add(report.report, panel=PICTURES, examples=report.EXAMPLES)
_add(export.export, panel=PICTURES, examples=export.EXAMPLES)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dino-extract {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, allow_from_autoenv=False, help="Print the version and exit."
    ),
) -> None:
    pass
