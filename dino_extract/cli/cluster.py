"""`cluster` and `curate`: groups of similar images, and training sets drawn evenly from them."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dino_extract.cli.options import (
    AsJson,
    Dataset,
    LabelDepth,
    Labels,
    Seed,
    note_lost,
    print_json,
    say,
    warn_of_line_breaks,
    write_images,
    write_list,
)
from dino_extract.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dino_extract.analysis.vectors.kmeans import Clusters
    from dino_extract.store import Store

EXAMPLES = """Examples:

  dino-extract cluster photos.h5 20 --sheets clusters/

  dino-extract cluster photos.h5 1000 --coarser 100,10 -o clusters.csv

  dino-extract curate photos.h5 --budget 5000 -o train.txt

  dino-extract curate crawl.h5 --budget 5000 --like good.h5    images like those of good.h5"""

SHEET_IMAGES = 24
SHOWN_CLUSTERS = 30


def cluster(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="Images to divide.")],
    num_clusters: Annotated[int, typer.Argument(metavar="K", min=1, help="Number of clusters.")],
    coarser: Annotated[
        str | None, typer.Option(metavar="K2,K3,...", help="Divide the clusters again into so many, level by level.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.csv", help="Write path, cluster of each level, similarity.")
    ] = None,
    sheets: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Draw a contact sheet of each cluster, its middle and its edge, and one of all.")
    ] = None,
    labels: Labels = None,
    label_depth: LabelDepth = 1,
    dataset: Dataset = "features",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Divide images into clusters of similar ones by k-means.

    Where labels are given or folders differ, purity and normalised mutual information say how clusters agree with them.
    """
    from dino_extract.analysis import cluster as analysis  # loads torch, which `--help` must not wait for, which `--help` must not wait for
    from dino_extract.analysis.vectors.stored import opened
    from dino_extract.analysis.writing import require_place

    require_place(output, "table")
    with opened(file) as store:
        levels = analysis.cluster(store, num_clusters, coarser=parse_levels(coarser, "--coarser"), dataset=dataset, seed=seed)
        codes = _codes(store, labels, label_depth)
        agreements = [None if codes is None else asdict(analysis.agreement(level.codes, codes)) for level in levels]
        paths = store.paths
        if output:
            columns = {f"cluster{len(level.centres)}": level.codes.tolist() for level in levels}
            write_images(output, paths, {**columns, "similarity": [round(value, 4) for value in levels[0].similarity.tolist()]})
        if sheets:
            _draw(store, levels[0], sheets)
    if as_json:
        print_json(
            [
                {"clusters": len(level.centres), "paths": paths, "codes": level.codes, "similarity": level.similarity, "agreement": found}
                for level, found in zip(levels, agreements, strict=True)
            ]
        )
        return
    for level, found in zip(levels, agreements, strict=True):
        text = f"   purity {found['purity']:.2%}   NMI {found['nmi']:.4f}" if found else ""
        print(f"{len(level.centres):,} clusters of {len(paths):,} images{text}")
    print("cluster  images  mean similarity  most typical")
    for number in range(min(len(levels[0].centres), SHOWN_CLUSTERS)):
        rows = _by_similarity(levels[0], number)
        if len(rows):
            print(f"{number:7}  {len(rows):6,}  {levels[0].similarity[rows].mean():15.3f}  {paths[rows[0]]}")
    if len(levels[0].centres) > SHOWN_CLUSTERS:
        say(f"note: {len(levels[0].centres) - SHOWN_CLUSTERS:,} more clusters; `-o FILE.csv` has them all")


def curate(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="Images to choose from.")],
    budget: Annotated[int, typer.Option(help="Images to choose.")],
    levels: Annotated[
        str | None, typer.Option(metavar="K1,K2,...", help="Clusters of each level, falling; by default by the size of the file.")
    ] = None,
    like: Annotated[str | None, typer.Option(metavar="SEEDS.h5", help="Choose images similar to these instead.")] = None,
    by: Annotated[
        Literal["sample", "cluster"], typer.Option(help="With --like: neighbours of each seed, or clusters with more than 3 seeds.")
    ] = "sample",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.txt", help="Write the paths there instead of to stdout.")
    ] = None,
    dataset: Dataset = "features",
    seed: Seed = 0,
) -> None:
    """Choose images for a training set: evenly over all kinds of images there are, or like a seed set.

    Prints their paths, one a line, relative to the folder that FILE.h5 was made from.
    """
    from dino_extract.analysis import curate as analysis  # loads torch, which `--help` must not wait for
    from dino_extract.analysis.writing import require_place

    require_place(output, "list")
    sizes = parse_levels(levels, "--levels")
    paths = analysis.curate(file, budget, levels=sizes, like=like, by=by, dataset=dataset, seed=seed).paths
    if len(paths) < budget:
        say(f"note: only {len(paths):,} images lie in clusters with enough seeds")
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write("".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape"))
        warn_of_line_breaks(paths)
    else:
        write_list(output, paths)


def parse_levels(text: str | None, option: str) -> list[int]:
    """Numbers with commas.

    Raises:
        ConfigError: anything else.
    """
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"`{option}` takes numbers, got `{text}`", hint=f"for example `{option} 100,10`") from None


def _codes(store: Store, labels: str | None, label_depth: int) -> NDArray[np.int64] | None:
    """(n,) class codes, or None where no labels are asked for and the folders give none."""
    from dino_extract.analysis.vectors.labels import encode, folder_labels, labels_of

    names = labels_of(store, labels, label_depth) if labels else folder_labels(store.paths, label_depth)
    classes = sorted(set(names) - {""})
    return encode(names, classes) if len(classes) > 1 else None


def _by_similarity(level: Clusters, number: int) -> NDArray[np.int64]:
    """(m,) rows of a cluster, the most typical first."""
    rows = (level.codes == number).nonzero()[0]
    order: NDArray[np.int64] = (-level.similarity[rows]).argsort(kind="stable")
    found: NDArray[np.int64] = rows[order]
    return found


def _draw(store: Store, level: Clusters, folder: str) -> None:
    """A sheet per cluster: the images nearest to its centre, and the farthest, by which one sees how far it reaches."""
    from dino_extract.analysis.writing import writing
    from dino_extract.pictures.sheets import COLUMNS, Strip, Tile, draw_strips, stored_tile

    with writing(folder, "folder"):
        os.makedirs(folder, exist_ok=True)
    paths = store.paths

    def tiles(rows: NDArray[np.int64]) -> list[Tile]:
        return [stored_tile(store, paths[row], f"{level.similarity[row]:.3f}") for row in rows.tolist()]

    overview, lost = [], list[str]()
    for number in range(len(level.centres)):
        rows = _by_similarity(level, number)
        middle, edge = tiles(rows[:SHEET_IMAGES]), tiles(rows[SHEET_IMAGES:][-COLUMNS:])
        strips = [Strip(f"cluster {number}: {len(rows):,} images, most typical first", middle)]
        if edge:
            strips.append(Strip("least typical", edge))
        lost += draw_strips(strips, os.path.join(folder, f"cluster-{number:04}.png"))
        if number < SHOWN_CLUSTERS:
            overview.append(Strip(f"cluster {number}: {len(rows):,} images", middle[:COLUMNS]))
    draw_strips(overview, os.path.join(folder, "clusters.png"))
    note_lost(lost)
    with writing(folder, "folder"):
        for name in os.listdir(folder):  # sheets of an earlier run with more clusters would pass for some of this one
            sheet = re.fullmatch(r"cluster-(\d{4,})\.png", name)
            if sheet and int(sheet[1]) >= len(level.centres):
                os.unlink(os.path.join(folder, name))
    say(f"{len(level.centres):,} contact sheets, and `clusters.png` with the most typical images of each: {folder}")
