"""`attention`: the attention of the CLS token."""

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
    end_with_failures,
    print_json,
    say,
)
from dino_extract.names import counted

EXAMPLES = """Examples:

  dino-extract attention photo.jpg --model vits14-reg

  dino-extract attention photos/*.jpg -o maps/ --layer 8 --size 560"""


def attention(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Write the images to this folder.")] = "attention",
    model: Model = None,
    weights: Weights = None,
    random_weights: RandomWeights = None,
    offline: Offline = False,
    size: Annotated[
        str, typer.Option(help="Shorter side of the model's input in pixels, or HEIGHTxWIDTH. More pixels give finer maps.")
    ] = "448",
    layer: Annotated[int | None, typer.Option(help="Draw the attention of this block, 0 for the first. The default is the last.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw the attention of the CLS token over the patches of images, for each head. Register tokens are left out."""
    if not quiet:
        say(f"attention in {counted(len(images), 'image')} ...")
    failed: list[str] = []
    found = dx.attention(
        images,
        output,
        model=model,
        weights=weights,
        random_weights=random_weights,
        offline=offline,
        size=size,
        layer=layer,
        overwrite=overwrite,
        on_failure=lambda image, error: failed.append(error),
    )
    for maps in found:
        if not quiet:
            say(f"{maps.image.path}: {1 - maps.elsewhere.mean():.0%} of the attention of block {maps.layer} goes to patches")
    if as_json:
        print_json([{"image": each.image.path, "picture": each.path, "layer": each.layer, "elsewhere": each.elsewhere} for each in found])
    else:
        for maps in found:
            print(maps.path)
    end_with_failures(failed)
