"""`attention`: where the CLS token looks."""

from __future__ import annotations

from typing import Annotated

import typer

from dino_extract.cli.options import AsJson, end_with_failures, print_json, say
from dino_extract.errors import SourceError


def attention(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Where the pictures go.")] = "attention",
    model: Annotated[str | None, typer.Option(help="A name from `dino-extract weights list`.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="PATH", help="Checkpoint file in any layout, or a fine-tuning run folder.")] = None,
    random_weights: Annotated[int | None, typer.Option(metavar="SEED", help="Untrained weights: the maps mean nothing.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    size: Annotated[int, typer.Option(help="Shorter side in pixels; a multiple of the patch size.")] = 448,
    layer: Annotated[int | None, typer.Option(help="Block, 0 for the first; by default the last.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw what the CLS token of each attention head attends to; register tokens are left out."""
    from dino_extract.pictures import attention as analysis  # loads torch, which `--help` must not wait for
    from dino_extract.pictures.sight import require_there, see
    from dino_extract.weights.loading import load

    if len(images) == 1:
        require_there(*images)
    backbone = load(model, weights=weights, random_seed=random_weights, offline=offline).module
    results = []
    failed: list[str] = []
    for number, image in enumerate(images):
        try:
            seen = see(image, backbone, size=size)
        except SourceError as error:
            if len(images) == 1:
                raise
            failed.append(error.message)
            continue
        maps = analysis.attention_maps(backbone, seen, layer=layer)
        results.append({"image": image, "picture": maps.save(output, number), "layer": maps.layer, "elsewhere": maps.elsewhere})
        say(f"{image}: {1 - maps.elsewhere.mean():.0%} of the attention of block {maps.layer} goes to patches")
    if as_json:
        print_json(results)
    else:
        for result in results:
            print(result["picture"])
    end_with_failures(failed)
