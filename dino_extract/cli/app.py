"""The commands and where they stand in `--help`."""

from __future__ import annotations

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

NUMBERS = "After embedding: answers"
PICTURES = "After embedding: pictures and files"

app = typer.Typer(
    name="dino-extract",
    help="DINOv2 embeddings of image folders in crash-safe HDF5.",
    epilog="Start with `dino-extract embed photos/`, then `dino-extract info photos.h5`. Exit codes: 0 done, 1 error, 2 usage, "
    "3 finished with failed images, 75 run again later, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("embed", epilog=embed.EXAMPLES)(embed.embed)
app.command("join", epilog=join.EXAMPLES)(join.join)
app.command("info")(inspect.info)
app.command("verify")(inspect.verify)
app.command("finetune")(finetune.finetune)
app.add_typer(weights.app, name="weights")
app.command("doctor")(doctor.doctor)
app.command("benchmark", epilog=benchmark.EXAMPLES)(benchmark.benchmark)
app.command("knn", rich_help_panel=NUMBERS, epilog=knn.EXAMPLES)(knn.knn)
app.command("linear", rich_help_panel=NUMBERS, epilog=linear.EXAMPLES)(linear.linear)
app.command("classify", rich_help_panel=NUMBERS)(linear.classify)
app.command("linear-dense", rich_help_panel=NUMBERS, epilog=linear_dense.EXAMPLES)(linear_dense.linear_dense)
app.command("search", rich_help_panel=NUMBERS, epilog=search.EXAMPLES)(search.search)
app.command("dedup", rich_help_panel=NUMBERS, epilog=dedup.EXAMPLES)(dedup.dedup)
app.command("outliers", rich_help_panel=NUMBERS, epilog=outliers.EXAMPLES)(outliers.outliers)
app.command("cluster", rich_help_panel=NUMBERS, epilog=cluster.EXAMPLES)(cluster.cluster)
app.command("curate", rich_help_panel=NUMBERS)(cluster.curate)
app.command("pca", rich_help_panel=PICTURES)(pca.pca)
app.command("match", rich_help_panel=PICTURES)(match.match)
app.command("attention", rich_help_panel=PICTURES)(attention.attention)
app.command("report", rich_help_panel=PICTURES)(report.report)
app.command("export", rich_help_panel=PICTURES)(export.export)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dino-extract {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
) -> None:
    pass
