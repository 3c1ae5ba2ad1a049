"""`pca`: patch tokens as colours."""

from __future__ import annotations

from typing import Annotated

import typer

import dino_extract as dx
from dino_extract.cli.options import AsJson, Overwrite, Quiet, announce, check_targets, file_in, print_json, say
from dino_extract.names import counted

EXAMPLES = """Examples:

  dino-extract pca photos.h5  # a file made with `embed --tokens cls,patch`

  dino-extract pca photos.h5 --path 'cats/*' --images 8 -o cats/

  dino-extract pca new.h5 --components cats/components.safetensors"""


def pca(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="A file made with `--tokens cls,patch`.")],
    paths: Annotated[
        list[str] | None, typer.Option("--path", metavar="KEY", help="Draw this image, or a quoted pattern such as 'cats/*' (repeatable).")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Write the images to this folder.")] = "pca",
    images: Annotated[int, typer.Option(min=0, help="Draw at most this many images, evenly spread; 0 draws all.")] = 16,
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="Use these patch tokens of the file, such as layers/9/patch_features.")
    ] = "patch_features",
    components: Annotated[
        str | None, typer.Option(metavar="FILE", help="Use the colours of an earlier run, from its components.safetensors.")
    ] = None,
    background: Annotated[
        float | None,
        typer.Option(help="Take patches up to this score for background, in standard deviations. The default is found in the file."),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Exchange foreground and background.")] = False,
    keep_background: Annotated[bool, typer.Option("--keep-background", help="Colour every patch.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw patch tokens of several images as colours: the same part of an object has the same colour in all of them."""
    check_targets({"picture": file_in(output, "grid.png")}, overwrite=overwrite)
    announce("PCA of patch tokens, from {}", file, quiet=quiet)
    pictures = dx.pca(
        file,
        paths or (),
        images=images,
        dataset=dataset,
        components=components,
        background=background,
        flip=flip,
        keep_background=keep_background,
    )
    grid, *written, saved = pictures.save(output, overwrite=overwrite)
    explained = pictures.colours.explained
    if not quiet:
        share = sum(pictures.foreground) / len(pictures.foreground)
        count = counted(len(pictures.paths), "image")
        say(f"{count}, {share:.0%} foreground, three colours show {explained[1:].sum():.0%} of its variance")
    if as_json:
        files = {"grid": grid, "pictures": written, "components": saved}
        print_json({**files, "paths": pictures.paths, "foreground": pictures.foreground, "explained": explained})
    else:
        print(grid)
