"""`report`: one page about a file."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import dino_extract as dx
from dino_extract.cli.options import (
    AsJson,
    Dataset,
    LabelDepth,
    Labels,
    Overwrite,
    Quiet,
    Threshold,
    announce,
    print_json,
    say,
)
from dino_extract.cli.progress import choose_progress
from dino_extract.names import counted

EXAMPLES = """Examples:

  dino-extract report photos.h5  # writes photos.html

  dino-extract report photos.h5 --labels labels.csv --images 2000 -o page.html"""


def report(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made by `dino-extract embed`.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.html", help="Write the page to this file. The default is FILE.html.")
    ] = None,
    labels: Labels = None,
    label_depth: LabelDepth = 1,
    dataset: Dataset = "features",
    images: Annotated[int, typer.Option(min=2, help="Show at most this many images on the map, evenly spread.")] = 10_000,
    projection: Annotated[Literal["auto", "pca", "tsne", "umap"], typer.Option(help="Compute the map with this method.")] = "auto",
    clusters: Annotated[int, typer.Option(min=0, help="Number of clusters; 0 chooses.")] = 0,
    threshold: Threshold = 0.95,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page that works offline: how the file was made, failures, outliers, duplicates, clusters, and a map of the images."""
    announce("page about {}", file, quiet=quiet)
    progress = choose_progress(quiet=quiet)
    try:
        result = dx.report(
            file,
            output,
            labels=labels,
            label_depth=label_depth,
            dataset=dataset,
            images=images,
            projection=projection,
            clusters=clusters,
            threshold=threshold,
            overwrite=overwrite,
            log=None if quiet else say,
            on_progress=lambda done, total: progress(done, total, 0),
        )
    finally:
        progress.close()
    if not quiet:
        say(f"{result.shown:,} of {counted(result.images, 'image')} on the map, page of {result.nbytes / 1e6:.1f} MB")
        if result.lost:
            say(f"note: {counted(result.lost, 'image')} moved or deleted since embedding; the page shows no picture of them")
    if as_json:
        print_json(result)
    else:
        print(result.path)
