"""`outliers`: unusual images."""

from __future__ import annotations

from typing import Annotated

import typer

import dino_extract as dx
from dino_extract.cli.options import (
    AsJson,
    Dataset,
    Overwrite,
    Quiet,
    Seed,
    Sheet,
    announce,
    check_targets,
    draw_sheet,
    print_json,
    write_images,
)
from dino_extract.names import counted

EXAMPLES = """Examples:

  dino-extract outliers photos.h5 --sheet odd.png  # images unlike all others

  dino-extract outliers new.h5 --against train.h5 -o new.csv"""


def outliers(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="The images to judge.")],
    against: Annotated[
        str | None, typer.Option(metavar="OTHER.h5", help="Compare with the images of this file. The default is FILE.h5 itself.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Show this many images. -o writes all.")] = 20,
    neighbours: Annotated[int, typer.Option(min=1, help="Average the cosine over this many nearest images.")] = 5,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.csv", help="Write all images, the most isolated first.")
    ] = None,
    dataset: Dataset = "features",
    seed: Seed = 0,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find unusual images: wrong files, broken images, rare kinds, and with --against new kinds.

    Isolation is 1 minus the mean cosine with the nearest other images. `unusual` is the percentile rank: 99 % means more isolated than
    99 % of the reference images.
    """
    check_targets({"table": output, "contact sheet": sheet}, overwrite=overwrite)
    announce("comparing {}", file, quiet=quiet)
    found = dx.outliers(file, against, neighbours=neighbours, dataset=dataset, seed=seed)
    if output:
        write_images(output, found.paths, found.columns(), overwrite=overwrite)
    draw_sheet(found, file, sheet, images=top, overwrite=overwrite)
    if as_json:
        print_json(found.to_dict(top))
        return
    if against is None:
        others = "all" if found.num_compared == len(found) else f"{found.num_compared:,}"
        print(f"{counted(len(found), 'image')}, each compared with {others} others")
    else:
        share = found.num_rare / len(found)
        print(f"{found.num_rare:,} of {counted(len(found), 'image')} ({share:.1%}) are more isolated than 99% of those of {against}")
    print("isolation  unusual  path  (most like)")
    for line in found.first(top):
        print(f"{line.isolation:9.4f}  {line.unusual:7.1%}  {line.path}  ({line.similarity:.4f} {line.nearest})")
