"""`report`: a page to look at."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from dino_extract.cli.options import AsJson, Dataset, print_json, say
from dino_extract.cli.progress import choose_progress


def report(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made by `dino-extract embed`.")],
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE.html", help="By default beside FILE.h5.")] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="CSV|H5:DATASET", help="Colour the map by these: path,label lines, or one label per row."),
    ] = None,
    dataset: Dataset = "features",
    max_images: Annotated[int, typer.Option(help="At most this many on the map, evenly spread.")] = 10_000,
    map_method: Annotated[Literal["auto", "pca", "tsne", "umap"], typer.Option("--map", help="How vectors become places.")] = "auto",
    clusters: Annotated[int, typer.Option(min=0, help="Number of clusters; 0 chooses.")] = 0,
    threshold: Annotated[float, typer.Option(help="Cosine from which on two images are duplicates.")] = 0.95,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the page's path.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page that works offline: how the file was made, failures, outliers, duplicates, clusters, and a map of the images."""
    from dino_extract.pictures import report as analysis  # loads h5py and torch, which `--help` must not wait for

    progress = choose_progress(quiet=quiet)
    try:
        result = analysis.report(
            file,
            output,
            labels=labels,
            dataset=dataset,
            max_images=max_images,
            map_method=map_method,
            num_clusters=clusters,
            threshold=threshold,
            on_progress=lambda done, total: progress(done, total, 0),
        )
    finally:
        progress.close()
    if not quiet:
        say(f"{result.shown:,} of {result.images:,} images on the map, page of {result.nbytes / 1e6:.1f} MB")
        if result.lost:
            say(f"note: {result.lost:,} images are no longer where they were embedded from and have no picture on the page")
    if as_json:
        print_json(asdict(result))
    else:
        print(result.path)
