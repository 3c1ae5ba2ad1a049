"""`outliers`: images like no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dino_extract.cli.options import AsJson, Dataset, Seed, Sheet, note_lost, print_json, say, write_images

if TYPE_CHECKING:
    from dino_extract.analysis.outliers import Outliers
    from dino_extract.store import Store

EXAMPLES = """Examples:

  dino-extract outliers photos.h5 --sheet odd.png          images unlike all others

  dino-extract outliers new.h5 --against train.h5 -o new.csv   new images unlike those of the training set"""

RARE = 0.99  # share of the usual images that an image must surpass to be counted as rare among them
MAX_SHEET_IMAGES = 200


def outliers(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="Images to judge.")],
    against: Annotated[str | None, typer.Option(metavar="OTHER.h5", help="Images taken for usual; else those of FILE.h5 itself.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Images to print and draw; -o has all.")] = 20,
    neighbours: Annotated[int, typer.Option(help="Nearest images over which the cosine is averaged.")] = 5,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE.csv", help="Write all images, in this order.")] = None,
    dataset: Dataset = "features",
    seed: Seed = 0,
    sheet: Sheet = None,
    as_json: AsJson = False,
) -> None:
    """Find images that are like no other: wrong files, broken pictures, rare kinds, and with --against kinds that are new.

    Isolation is 1 less the mean cosine with the nearest other images; `unusual` is the share of the images compared with that are less
    isolated.
    """
    from dino_extract.analysis import (
        outliers as analysis,  # loads torch, which `--help` must not wait for, which `--help` must not wait for
    )
    from dino_extract.analysis.tables import table_path
    from dino_extract.analysis.vectors.stored import opened
    from dino_extract.analysis.writing import require_picture_place, require_place

    require_place(output, "table")
    require_picture_place(sheet, "contact sheet")
    with opened(file) as store:
        found = analysis.outliers(store, against, neighbours=neighbours, dataset=dataset, seed=seed)
        if output:
            columns: dict[str, list[Any]] = {
                name: [round(value, 4) for value in getattr(found, name).tolist()] for name in ("isolation", "unusual", "similarity")
            }
            write_images(output, found.paths, {**columns, "nearest": [table_path(path) for path in found.nearest]})
        if sheet:
            _draw(store, found, min(top, MAX_SHEET_IMAGES), sheet)
    if as_json:
        print_json(
            {
                "images": len(found),
                "compared_with": found.num_compared,
                "rare": int((found.unusual >= RARE).sum()),
                "outliers": [line._asdict() for line in found.first(top)],
            }
        )
        return
    if against is None:
        others = "all" if found.num_compared == len(found) else f"{found.num_compared:,}"
        print(f"{len(found):,} images, each compared with {others} others")
    else:
        rare = (found.unusual >= RARE).sum()
        print(f"{rare:,} of {len(found):,} images ({rare / len(found):.1%}) are more isolated than {RARE:.0%} of those of {against}")
    print("isolation  unusual  path  (most like)")
    for line in found.first(top):
        print(f"{line.isolation:9.4f}  {line.unusual:7.1%}  {line.path}  ({line.similarity:.4f} {line.nearest})")


def _draw(store: Store, found: Outliers, count: int, sheet: str) -> None:
    from dino_extract.pictures.sheets import Strip, draw_strips, stored_tile

    tiles = [stored_tile(store, line.path, f"{line.isolation:.3f}") for line in found.first(count)]
    note_lost(draw_strips([Strip(f"{len(tiles):,} of {len(found):,} images, the most isolated first", tiles)], sheet))
    say(f"contact sheet: {sheet}")
