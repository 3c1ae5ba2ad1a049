"""`finetune`: unlabelled images in, an adapted or new backbone out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import dino_extract as dx
from dino_extract.cli.options import AsJson, count_option, print_json, say
from dino_extract.config import Compile, Dtype
from dino_extract.finetuning.config import FinetuneConfig
from dino_extract.finetuning.presets import Preset, configure, parse_settings, quoted_sources, to_json
from dino_extract.names import quoted

START = "Start"
LENGTH = "Length and batch"
CROPS = "Crops"
EVALUATION = "Evaluation"
MACHINE = "Machine"

EXAMPLES = """Examples:

  dino-extract finetune photos/ -o run/ --eval labelled/             adapt vits14 to your own images

  dino-extract finetune photos/ -o run/                              the same again: continue after an interruption

  dino-extract embed photos/ --weights run/                          use the result

  dino-extract finetune photos/ -o run2/ --weights run/ --steps 500  go on from a finished run

  torchrun --nproc-per-node 8 --no-python dino-extract finetune photos/ -o run/  train on 8 GPUs"""

_PRESET = "the preset's"
_DEFAULT = FinetuneConfig()


def finetune(
    sources: Annotated[list[str] | None, typer.Argument(metavar="SOURCE...", help="Folders, images, quoted globs, .tar, .zip.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="RUN/", help="Folder of the run; a run in it is continued.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A name from `weights list`.", show_default=_DEFAULT.model, rich_help_panel=START)
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="PATH", help="Start from this checkpoint or run.", rich_help_panel=START)] = None,
    keep_heads: Annotated[
        bool | None, typer.Option("--keep-heads", help="Take the heads of the run in --weights too.", rich_help_panel=START)
    ] = None,
    from_scratch: Annotated[bool | None, typer.Option("--from-scratch", help="Start from random weights.", rich_help_panel=START)] = None,
    distill: Annotated[
        str | None, typer.Option(metavar="TEACHER", help="Learn from this frozen model or checkpoint.", rich_help_panel=START)
    ] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never download.", rich_help_panel=START)] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Default values: small (your own images), short, long (official recipes).", show_default="small", rich_help_panel=START
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="config.json", exists=True, dir_okay=False, help="Use the values of another run.", rich_help_panel=START),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other value, such as optim.base_lr=1e-4.", rich_help_panel=START),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images.", show_default=_PRESET, rich_help_panel=LENGTH)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.", rich_help_panel=LENGTH)] = None,
    batch: Annotated[int | None, count_option("Images per forward pass and process; auto is the preset's.", LENGTH)] = None,
    accumulation: Annotated[
        int | None, typer.Option(min=1, help="Forward passes per optimizer step.", show_default=_PRESET, rich_help_panel=LENGTH)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of all random numbers.", show_default=str(_DEFAULT.seed), rich_help_panel=LENGTH)
    ] = None,
    global_size: Annotated[
        int | None, typer.Option(help="Side of global crops in pixels.", show_default="224", rich_help_panel=CROPS)
    ] = None,
    local_size: Annotated[int | None, typer.Option(help="Side of local crops in pixels.", show_default="98", rich_help_panel=CROPS)] = None,
    local_crops: Annotated[
        int | None, typer.Option(min=0, help="Local crops of each image.", show_default="8", rich_help_panel=CROPS)
    ] = None,
    blur: Annotated[
        Literal["nominal", "released", "off"] | None,
        typer.Option(help="Blur as in the papers, as in the released weights, or none.", show_default="nominal", rich_help_panel=CROPS),
    ] = None,
    eval: Annotated[  # noqa: A002 - the name of the option
        str | None, typer.Option(metavar="SOURCE", help="Labelled images (CLASS/*.jpg) for a kNN accuracy.", rich_help_panel=EVALUATION)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...", show_default=_DEFAULT.device, rich_help_panel=MACHINE)
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Precision of the networks.", show_default=_DEFAULT.dtype, rich_help_panel=MACHINE)
    ] = None,
    workers: Annotated[int | None, count_option("Decoder processes; auto is one per free CPU.", MACHINE)] = None,
    parallel: Annotated[
        Literal["ddp", "fsdp"] | None,
        typer.Option(help="Several processes: copy the networks, or split them.", show_default=_DEFAULT.parallel, rich_help_panel=MACHINE),
    ] = None,
    compile: Annotated[  # noqa: A002 - the name of the option
        Compile | None,
        typer.Option(help="Compile the networks; auto does not yet.", show_default=_DEFAULT.compile, rich_help_panel=MACHINE),
    ] = None,
    checkpoint_blocks: Annotated[
        bool | None, typer.Option("--checkpoint-blocks", help="Recompute activations to save memory.", rich_help_panel=MACHINE)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration and do nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a backbone to unlabelled images with the DINOv2 objective, or train one from scratch.

    Run the same command again to continue after any interruption. The result is a folder that `dino-extract embed --weights RUN/` takes.
    """
    given: dict[str, Any] = {
        "sources": sources or None,
        "output": output,
        "model": model,
        "weights": weights,
        "keep_heads": keep_heads,
        "from_scratch": from_scratch,
        "distill": distill,
        "offline": offline,
        "epochs": epochs,
        "steps": steps,
        "batch": batch or None,
        "accumulation": accumulation,
        "seed": seed,
        "crops.global_crops_size": global_size,
        "crops.local_crops_size": local_size,
        "crops.local_crops_number": local_crops,
        "crops.blur": blur,
        "eval": eval,
        "device": device,
        "dtype": dtype,
        "workers": workers,
        "parallel": parallel,
        "compile": compile,
        "checkpoint_blocks": checkpoint_blocks,
    }
    values = {name: value for name, value in given.items() if value is not None} | parse_settings(settings or [])
    if dry_run:
        typer.echo(to_json(configure(values, preset=preset, config=config)), nl=False)
        return
    result = dx.finetune(preset=preset, config=config, log=None if quiet else say, **values)
    if os.environ.get("RANK", "0") != "0":  # of several processes under torchrun, only the first one prints
        return
    if as_json:
        print_json(result)
    say(f"{result.steps} steps done, {result.images_per_s:.1f} images/s, {result.unreadable} unreadable images")
    run, embeddings = quoted(str(result.output)), quoted(f"{result.output}.h5")
    say(f"next: dino-extract embed {quoted_sources(result.sources)} --weights {run} -o {embeddings}")
