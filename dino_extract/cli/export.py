"""`export`: embeddings for other tools."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dino_extract.analysis.export.formats import FormatName
from dino_extract.cli.options import AsJson, print_json, say


def export(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made by `dino-extract embed`.")],
    to: Annotated[
        FormatName | None,
        typer.Option("--to", help="File format; by default what the suffix of --output says."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="By default beside FILE.h5.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Which tokens, such as mean_features or layers/9/features.")] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Of the numbers written.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write embeddings as npy, Parquet, CSV, AnnData, hloc, ann-benchmarks or MIL bags; failed images are left out."""
    from dino_extract.analysis.export import exporting as analysis  # loads torch, which `--help` must not wait for

    result = analysis.export(file, output, to, dataset=dataset, dtype=dtype, overwrite=overwrite)
    left_out = f", {result.left_out:,} failed images left out" if result.left_out else ""
    say(f"{result.rows:,} images{left_out}")
    if as_json:
        print_json(result)
    else:
        print("\n".join(result.paths))
