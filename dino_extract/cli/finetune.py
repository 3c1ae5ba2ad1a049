"""`finetune`: unlabelled images in, an adapted or new backbone out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dino_extract.errors import ConfigError
from dino_extract.finetune.config import FinetuneConfig
from dino_extract.finetune.presets import Preset, check, parse_settings, preset, read_config, to_json, with_open_lengths, with_values
from dino_extract.names import quoted

START = "Start"
LENGTH = "Length and batch"
CROPS = "Crops"
WATCH = "Watch"
MACHINE = "Machine"

_NO_VALUE = "the preset's"


def finetune(
    context: typer.Context,
    sources: Annotated[list[str] | None, typer.Argument(metavar="SOURCE...", help="Folders, images, quoted globs, .tar, .zip.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="RUN/", help="Folder of the run; it continues what is there.")
    ] = None,
    model: Annotated[str, typer.Option(help="A name from `dino-extract weights list`.", rich_help_panel=START)] = FinetuneConfig.model,
    weights: Annotated[
        str | None, typer.Option(metavar="PATH", help="Start from this checkpoint or run folder.", rich_help_panel=START)
    ] = FinetuneConfig.weights,
    keep_heads: Annotated[
        bool, typer.Option("--keep-heads", help="Take the heads of the run in --weights too.", rich_help_panel=START)
    ] = FinetuneConfig.keep_heads,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start from random weights.", rich_help_panel=START)
    ] = FinetuneConfig.from_scratch,
    distill: Annotated[
        str | None, typer.Option(metavar="TEACHER", help="Learn from this frozen model or checkpoint.", rich_help_panel=START)
    ] = FinetuneConfig.distill,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.", rich_help_panel=START)] = FinetuneConfig.offline,
    preset_name: Annotated[
        Preset,
        typer.Option(
            "--preset", help="Set of default values: small (your own images), short, long (official recipes).", rich_help_panel=START
        ),
    ] = "small",
    config_path: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="config.json",
            exists=True,
            dir_okay=False,
            help="Repeat a run with its configuration, but for what is given here.",
            rich_help_panel=START,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any value of the configuration, such as optim.base_lr=1e-4.", rich_help_panel=START
        ),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images.", show_default=_NO_VALUE, rich_help_panel=LENGTH)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.", rich_help_panel=LENGTH)] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images of one forward pass on one process.", show_default=_NO_VALUE, rich_help_panel=LENGTH)
    ] = None,
    accumulation: Annotated[
        int | None, typer.Option(min=1, help="Forward passes of one optimizer step.", show_default=_NO_VALUE, rich_help_panel=LENGTH)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=LENGTH)] = FinetuneConfig.seed,
    global_size: Annotated[
        int | None, typer.Option(help="Side of global crops in pixels.", show_default="224", rich_help_panel=CROPS)
    ] = None,
    local_size: Annotated[int | None, typer.Option(help="Side of local crops in pixels.", show_default="98", rich_help_panel=CROPS)] = None,
    local_crops: Annotated[
        int | None, typer.Option(min=0, help="Local crops of each image.", show_default="8", rich_help_panel=CROPS)
    ] = None,
    blur: Annotated[
        Literal["nominal", "released", "off"] | None,
        typer.Option(
            help="Blur probabilities of the papers, of the released weights, or none.", show_default="nominal", rich_help_panel=CROPS
        ),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option("--eval", metavar="SOURCE", help="Labelled images (CLASS/*.jpg) for a kNN accuracy.", rich_help_panel=WATCH),
    ] = FinetuneConfig.evaluate,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=MACHINE)] = FinetuneConfig.device,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the networks' products.", rich_help_panel=MACHINE)
    ] = FinetuneConfig.dtype,
    workers: Annotated[
        int, typer.Option(min=0, help="Decoder processes; 0 is one per free CPU.", rich_help_panel=MACHINE)
    ] = FinetuneConfig.num_workers,
    parallel: Annotated[
        Literal["ddp", "fsdp"], typer.Option(help="Over several processes: copies, or shares of the networks.", rich_help_panel=MACHINE)
    ] = FinetuneConfig.parallel,
    compile_blocks: Annotated[
        bool, typer.Option("--compile", help="Compile the blocks of the networks.", rich_help_panel=MACHINE)
    ] = FinetuneConfig.compile,
    checkpoint_blocks: Annotated[
        bool, typer.Option("--checkpoint-blocks", help="Recompute activations to save memory.", rich_help_panel=MACHINE)
    ] = FinetuneConfig.checkpoint_blocks,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Adapt a backbone to unlabelled images with the DINOv2 objective, or train one from scratch.

    Run the same command again to continue after any interruption. On several GPUs: `torchrun --nproc-per-node 8 --no-python dino-extract
    finetune ...`. The result is a folder that `dino-extract embed --weights RUN/` takes.
    """
    if config_path is not None and _is_given(context, "preset_name"):
        raise ConfigError("`--preset` sets the values that the file of `--config` has already", hint="leave out one of them")
    base = read_config(config_path) if config_path is not None else preset(preset_name, from_scratch=from_scratch)
    given: dict[str, Any] = {
        "sources": tuple(sources) if sources else None,
        "output": output,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch,
        "accumulation": accumulation,
        "crops.global_crops_size": global_size,
        "crops.local_crops_size": local_size,
        "crops.local_crops_number": local_crops,
        "crops.blur": blur,
    }
    given, chosen = {name: value for name, value in given.items() if value is not None}, parse_settings(settings or [])
    if {"epochs", "steps"} & (given.keys() | chosen.keys()):
        base = with_open_lengths(base)
    config = with_values(base, given)
    options: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "keep_heads": keep_heads,
        "from_scratch": from_scratch,
        "distill": distill,
        "offline": offline,
        "seed": seed,
        "evaluate": evaluate,
        "device": device,
        "dtype": dtype,
        "num_workers": workers,
        "parallel": parallel,
        "compile": compile_blocks,
        "checkpoint_blocks": checkpoint_blocks,
    }
    if config_path is not None:  # a repeated run has these from its file, but for those that are given
        parameters = {"num_workers": "workers", "compile": "compile_blocks"}
        options = {name: value for name, value in options.items() if _is_given(context, parameters.get(name, name))}
    config = with_values(replace(config, **options), chosen)
    _require_places(config)
    check(config)
    if dry_run:
        typer.echo(to_json(config), nl=False)
        return

    from dino_extract.finetune.loop import finetune as train  # loads torch, which `--help` must not wait for

    summary = train(config, lambda line: typer.echo(line, err=True))
    if os.environ.get("RANK", "0") != "0":  # of several processes under torchrun the first one speaks
        return
    if as_json:
        typer.echo(json.dumps({**asdict(summary), "output": str(summary.output)}))
    typer.echo(f"{summary.steps} steps done, {summary.images_per_s:.1f} images/s, {summary.unreadable} unreadable images", err=True)
    run, embeddings = quoted(str(summary.output)), quoted(f"{summary.output}.h5")
    typer.echo(f"next: dino-extract embed {_quoted(config.sources)} --weights {run} -o {embeddings}", err=True)


def _require_places(config: FinetuneConfig) -> None:
    missing = [what for what, given in (("images", config.sources), ("a folder for the run", config.output)) if not given]
    if missing:
        example = f"dino-extract finetune {_quoted(config.sources) or 'photos/'} -o {quoted(config.output or 'run/')}"
        raise ConfigError(f"missing: {' and '.join(missing)}", hint=f"for example `{example}`")


def _quoted(sources: Sequence[str]) -> str:
    """Sources as they are typed, but for those after the second."""
    return " ".join([*map(quoted, sources[:2]), *(["..."] if len(sources) > 2 else [])])


def _is_given(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name != "DEFAULT"
