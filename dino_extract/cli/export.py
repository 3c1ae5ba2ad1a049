"""`export`: embeddings for other tools."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from dino_extract.cli.options import AsJson, print_json, say


def export(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made by `dino-extract embed`.")],
    to: Annotated[
        Literal["npy", "parquet", "csv", "h5ad", "hloc", "ann-benchmarks", "bags"] | None,
        typer.Option("--to", help="File format; by default what the suffix of --output says."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="By default beside FILE.h5.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Which tokens, such as mean_features or layers/9/features.")] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Of the numbers written.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write embeddings as npy, Parquet, CSV, AnnData, hloc, ann-benchmarks or MIL bags; failed images are left out."""
    from dino_extract.analysis import export as analysis  # loads h5py, which `--help` must not wait for, which `--help` must not wait for

    result = analysis.export(file, output, to, dataset=dataset, dtype=dtype, overwrite=overwrite)
    left_out = f", {result.left_out:,} failed images left out" if result.left_out else ""
    say(f"{result.rows:,} images{left_out}")
    if result.prefixed:
        say(f"note: {result.prefixed:,} paths that a spreadsheet would run as formulas have `./` in front")
    if as_json:
        print_json(asdict(result))
    else:
        print("\n".join(result.paths))
