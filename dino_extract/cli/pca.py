"""`pca`: patch tokens as colours."""

from __future__ import annotations

from typing import Annotated

import typer

from dino_extract.cli.options import AsJson, print_json, say


def pca(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made with `--tokens cls,patch`.")],
    paths: Annotated[list[str] | None, typer.Option("--path", help="Image, or quoted pattern such as 'cats/*' (repeatable).")] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Where the pictures go.")] = "pca",
    limit: Annotated[int, typer.Option(min=0, help="At most this many images, evenly spread; 0 for all.")] = 16,
    layer: Annotated[int | None, typer.Option(help="Block whose tokens are used; by default the final output.")] = None,
    components: Annotated[str | None, typer.Option(metavar="FILE", help="Colours of an earlier run: its components.safetensors.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Of the foreground, in standard deviations of the first component; found by itself.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Take the other side for the foreground.")] = False,
    keep_background: Annotated[bool, typer.Option("--keep-background", help="Colour every patch.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw patch tokens of several images as colours: the same part of an object has the same colour in all of them."""
    from dino_extract.pictures import pca as analysis  # loads h5py, which `--help` must not wait for
    from dino_extract.store import open_store

    with open_store(file) as store:
        pictures = analysis.pca(
            store,
            paths or (),
            limit=limit,
            layer=layer,
            components=components,
            threshold=threshold,
            flip=flip,
            keep_background=keep_background,
        )
        written = pictures.save(output)
    explained = pictures.colours.explained
    say(
        f"{len(pictures.paths):,} images, {sum(pictures.foreground) / len(pictures.foreground):.0%} foreground, "
        f"three colours show {explained[1:].sum():.0%} of its variance"
    )
    if as_json:
        files = {"grid": written[0], "pictures": written[1:-1], "components": written[-1]}
        print_json({**files, "paths": pictures.paths, "foreground": pictures.foreground, "explained": explained})
    else:
        print(written[0])
