"""`benchmark`: how fast each stage is on this machine, and what bounds a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dino_extract.cli.options import AsJson, count_option, print_json
from dino_extract.config import Compile, Dtype, EmbedConfig, Resize

EXAMPLES = """Examples:

  dino-extract benchmark                         made-up images: this machine alone

  dino-extract benchmark photos/ --model vitb14  your own photographs, from your own disk"""


def benchmark(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[DIR]...", help="Images to measure with, as for `embed`; without any, some are made up.")
    ] = None,
    model: Annotated[str, typer.Option(help="A name from `weights list`; its weights are random, which changes no time.")] = "vits14",
    tokens: Annotated[str, typer.Option(help="What to keep, as for `embed`.")] = EmbedConfig.tokens,
    layers: Annotated[str | None, typer.Option(help="As for `embed`.")] = EmbedConfig.layers,
    size: Annotated[
        str | None, typer.Option(help="Input side in pixels, or HEIGHTxWIDTH; by default the model's own, 224 for released ones.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = EmbedConfig.device,
    dtype: Annotated[Dtype, typer.Option(help="Of the computation.")] = EmbedConfig.dtype,
    compile: Annotated[Compile, typer.Option(help="As for `embed`.")] = EmbedConfig.compile,  # noqa: A002 - the name of the option
    resize: Annotated[Resize, typer.Option(help="As for `embed`.")] = EmbedConfig.resize,
    batch: Annotated[int, count_option("Images per batch; auto finds a good size.")] = EmbedConfig.batch,
    workers: Annotated[int, count_option("Decoder processes; auto is one per free CPU.")] = EmbedConfig.workers,
    images: Annotated[int, typer.Option(min=1, help="Measure with this many images at most.")] = 256,
    scratch: Annotated[str, typer.Option(metavar="DIR", help="Folder on the disk to measure; left as it was.")] = ".",
    as_json: AsJson = False,
) -> None:
    """Measure reading, decoding, resizing, the model, writing, and a whole run; say what bounds it."""
    from dino_extract.embedding.benchmark import benchmark as measure  # loads torch, which `--help` must not wait for

    config = EmbedConfig(
        model=model,
        random_weights=0,
        tokens=tokens,
        layers=layers,
        size=size,
        device=device,
        dtype=dtype,
        compile=compile,
        resize=resize,
        batch=batch,
        workers=workers,
    )
    report = measure(sources or [], config, num_images=images, scratch=scratch)
    if as_json:
        print_json(asdict(report))
    else:
        typer.echo(report.text())
