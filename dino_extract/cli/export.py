"""`export`: embeddings for other tools."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import dino_extract as dx
from dino_extract.analysis.export.formats import FormatName
from dino_extract.cli.options import AsJson, Overwrite, print_json, say
from dino_extract.names import counted

EXAMPLES = """Examples:

  dino-extract export photos.h5 --to parquet  # writes photos.parquet

  dino-extract export photos.h5 -o photos.csv --dataset mean_features"""


def export(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made by `dino-extract embed`.")],
    to: Annotated[
        FormatName | None,
        typer.Option("--to", help="Write this format. The default is the format of the suffix of --output."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="PATH", help="Write to this file. The default is next to FILE.h5.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write these tokens, such as mean_features or layers/9/features.")
    ] = None,
    store_dtype: Annotated[
        Literal["float32", "float16"], typer.Option("--store-dtype", help="Precision of the numbers that are written.")
    ] = "float32",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write embeddings as npy, Parquet, CSV, AnnData, hloc, ann-benchmarks or MIL bags. Failed images are left out."""
    result = dx.export(file, output, to, dataset=dataset, dtype=store_dtype, overwrite=overwrite)
    left_out = f", {result.left_out:,} failed {'image' if result.left_out == 1 else 'images'} left out" if result.left_out else ""
    say(f"{counted(result.rows, 'image')}{left_out}")
    if as_json:
        print_json(result)
    else:
        print("\n".join(result.paths))
