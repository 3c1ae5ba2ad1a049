"""`benchmark`: how fast each stage is on this machine, and what bounds a run."""

from __future__ import annotations

from typing import Annotated

import typer

import dino_extract as dx
from dino_extract.cli.help import EXPERT
from dino_extract.cli.options import AsJson, Batch, ComputeDtype, Device, Quiet, Size, Workers, given_options, model_names, print_json, say
from dino_extract.config import Compile, EmbedConfig, Resize

EXAMPLES = """Examples:
  dino-extract benchmark                         # made images: this machine alone
  dino-extract benchmark photos/ --model vitb14  # your images, from your own disk"""


def benchmark(
    context: typer.Context,
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE", help="Images to measure with, as for `embed`. Without any, images are made.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images are used at most.")] = 256,
    scratch: Annotated[str, typer.Option(metavar="FOLDER", help="Folder on the disk to measure. Nothing stays in it.")] = ".",
    as_json: AsJson = False,
    quiet: Quiet = False,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME", autocompletion=model_names, help="A name from `weights list`. Its weights are random, which changes no time."
        ),
    ] = "vits14",
    tokens: Annotated[str, typer.Option(metavar="KINDS", help="Tokens to store, as for `embed`.")] = EmbedConfig.tokens,
    layers: Annotated[str | None, typer.Option(metavar="BLOCKS", help="Earlier blocks, as for `embed`.")] = EmbedConfig.layers,
    size: Size = EmbedConfig.size,
    device: Device = EmbedConfig.device,
    dtype: ComputeDtype = EmbedConfig.dtype,
    batch: Batch = EmbedConfig.batch,
    compile: Annotated[  # noqa: A002 - the name of the option
        Compile, typer.Option(rich_help_panel=EXPERT, help="Compile the model, as for `embed`.")
    ] = EmbedConfig.compile,
    resize: Annotated[Resize, typer.Option(rich_help_panel=EXPERT, help="Where images are resized, as for `embed`.")] = EmbedConfig.resize,
    workers: Workers = EmbedConfig.workers,
) -> None:
    """Measure reading, decoding, resizing, the model, writing and a whole run, and report which of them bounds it."""
    config = EmbedConfig(random_weights=0, **given_options(context, EmbedConfig))
    if not quiet:
        say("measuring each stage, for about half a minute")
    report = dx.benchmark(sources or [], config, images=images, scratch=scratch)
    print_json(report) if as_json else print(report.text())
