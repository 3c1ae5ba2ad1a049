"""`cluster` and `curate`: groups of similar images, and training sets drawn evenly from them."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

import dino_extract as dx
from dino_extract import analysis
from dino_extract.cli.options import (
    AsJson,
    Dataset,
    LabelDepth,
    Labels,
    Overwrite,
    Quiet,
    Seed,
    announce,
    check_targets,
    draw_sheet,
    file_in,
    numbers,
    print_json,
    say,
    warn_of_line_breaks,
    write_images,
    write_list,
)
from dino_extract.names import counted

EXAMPLES = """Examples:

  dino-extract cluster photos.h5 20 --sheet clusters/

  dino-extract cluster photos.h5 1000 --coarser 100,10 -o clusters.csv"""

CURATE_EXAMPLES = """Examples:

  dino-extract curate photos.h5 --images 5000 -o train.txt

  dino-extract curate crawl.h5 --images 5000 --like good.h5"""

SHOWN_CLUSTERS = 30


def cluster(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="The images to divide.")],
    clusters: Annotated[
        int | None, typer.Argument(metavar="K", min=1, help="Number of clusters. The default depends on the number of images, 2 to 30.")
    ] = None,
    coarser: Annotated[
        str | None, typer.Option(metavar="K2,K3,...", help="Divide the clusters again into K2 clusters, those into K3, and so on.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.csv", help="Write the path, clusters and similarity of each image.")
    ] = None,
    sheet: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Draw a contact sheet of each cluster and one of all into a folder.")
    ] = None,
    labels: Labels = None,
    label_depth: LabelDepth = 1,
    dataset: Dataset = "features",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Divide images into clusters of similar ones by k-means.

    Where labels are given or folders differ, purity and normalised mutual information say how well clusters agree with them.
    """
    coarser_sizes = numbers(coarser, "--coarser", "100,10")
    check_targets({"table": output, "contact sheet": file_in(sheet, "clusters.png")}, overwrite=overwrite)
    announce("k-means of {}", file, quiet=quiet)
    with dx.open(file) as store:
        found = dx.cluster(store, clusters, coarser=coarser_sizes, dataset=dataset, seed=seed)
        agreements = analysis.agreements(found, store, labels=labels, label_depth=label_depth)
        draw_sheet(found, file, sheet, overwrite=overwrite)
    if output:
        write_images(output, found.paths, found.columns(), overwrite=overwrite)
    if as_json:
        levels = zip(found.levels, agreements, strict=True)
        print_json([{"clusters": len(level.centres), "paths": found.paths, **level.to_dict(), "agreement": each} for level, each in levels])
        return
    for level, agreement in zip(found.levels, agreements, strict=True):
        text = f"   purity {agreement.purity:.2%}   NMI {agreement.nmi:.4f}" if agreement else ""
        print(f"{len(level.centres):,} clusters of {counted(len(found.paths), 'image')}{text}")
    print("cluster  images  mean similarity  most typical")
    finest = found.levels[0]
    for number in range(min(len(finest.centres), SHOWN_CLUSTERS)):
        rows = finest.rows(number)
        if len(rows):
            print(f"{number:7}  {len(rows):6,}  {finest.similarity[rows].mean():15.3f}  {found.paths[rows[0]]}")
    if len(finest.centres) > SHOWN_CLUSTERS:
        say(f"note: {len(finest.centres) - SHOWN_CLUSTERS:,} more clusters; `-o FILE.csv` has them all")


def curate(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="The images to choose from.")],
    images: Annotated[int, typer.Option(min=1, help="Choose this many images.")],
    levels: Annotated[
        str | None, typer.Option(metavar="K1,K2,...", help="Numbers of clusters of each level, falling. The default depends on the file.")
    ] = None,
    like: Annotated[str | None, typer.Option(metavar="SEEDS.h5", help="Choose images similar to the images of this file instead.")] = None,
    by: Annotated[
        Literal["sample", "cluster"],
        typer.Option(help="With --like, choose neighbours of each seed, or images of clusters with more than 3 seeds."),
    ] = "sample",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.txt", help="Write the paths to this file instead of stdout.")
    ] = None,
    dataset: Dataset = "features",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Choose images for a training set: evenly over all kinds of images in a file, or similar to a seed set.

    Prints their paths, one a line, relative to the folder that FILE.h5 was made from.
    """
    sizes = numbers(levels, "--levels", "1000,100")
    check_targets({"list": output}, overwrite=overwrite)
    announce("choosing from {}", file, quiet=quiet)
    found = dx.curate(file, images, levels=sizes, like=like, by=by, dataset=dataset, seed=seed)
    if len(found.paths) < images:
        say(f"note: only {counted(len(found.paths), 'image')} belong to clusters with enough seeds")
    if output is not None:
        write_list(output, found.paths, overwrite=overwrite)
    if as_json:
        print_json(found)
    elif output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write("".join(f"{path}\n" for path in found.paths).encode("utf-8", "surrogateescape"))
        warn_of_line_breaks(found.paths)
