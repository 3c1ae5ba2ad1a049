"""`match`: the same parts in two images."""

from __future__ import annotations

from typing import Annotated

import typer

import dino_extract as dx
from dino_extract.cli.options import (
    AsJson,
    Model,
    Offline,
    Overwrite,
    Quiet,
    RandomWeights,
    Weights,
    check_targets,
    print_json,
    say,
)

EXAMPLES = """Examples:

  dino-extract match left.jpg right.jpg -o match.png

  dino-extract match cats/1.jpg cats/2.jpg --file photos.h5  # no model is needed"""


def match(
    image_a: Annotated[str, typer.Argument(metavar="A", help="An image file, or with --file the path of an image in it.")],
    image_b: Annotated[str, typer.Argument(metavar="B", help="The image to compare it with.")],
    file: Annotated[str | None, typer.Option(metavar="FILE.h5", help="Take the patch tokens that are stored in this file.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE.png", help="Write the image to this file.")] = "match.png",
    top: Annotated[int, typer.Option(min=1, help="Draw this many matches.")] = 40,
    spacing: Annotated[int, typer.Option(min=1, help="Draw no match closer than this many patches to a better one.")] = 2,
    min_similarity: Annotated[float, typer.Option(help="Leave out pairs with a smaller cosine.")] = 0.0,
    keep_background: Annotated[
        bool, typer.Option("--keep-background", help="Match all patches, and not those of the foreground alone.")
    ] = False,
    model: Model = None,
    weights: Weights = None,
    random_weights: RandomWeights = None,
    offline: Offline = False,
    size: Annotated[
        str, typer.Option(help="Shorter side of the model's input in pixels, or HEIGHTxWIDTH. More pixels find smaller details.")
    ] = "448",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw lines between patches of two images that are each other's most similar patch."""
    check_targets({"picture": output}, overwrite=overwrite)
    if not quiet:
        say("matching the patches of two images ...")
    found = dx.match(
        image_a,
        image_b,
        store=file,
        keep_background=keep_background,
        min_similarity=min_similarity,
        model=model,
        weights=weights,
        random_weights=random_weights,
        offline=offline,
        size=size,
    )
    drawn = found.first(top, spacing=spacing)
    drawn.save(output, overwrite=overwrite)
    if not quiet:
        say(f"{len(found):,} matches, {len(drawn):,} drawn")
    if as_json:
        print_json({"picture": output, "a": found.places_a, "b": found.places_b, "similarity": found.similarity})
    else:
        print(output)
