"""`embed`: images in, one HDF5 file out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dino_extract.cli.options import count_option
from dino_extract.cli.progress import choose_progress
from dino_extract.cli.weights import download_progress
from dino_extract.config import AlphaPolicy, Compile, Decode, Dtype, EmbedConfig, Resize, SizePolicy, StoreDtype, most_failures
from dino_extract.errors import ExitCode
from dino_extract.names import quoted
from dino_extract.options import limits_of
from dino_extract.weights import ensure_available

if TYPE_CHECKING:
    from dino_extract.embedding.pipeline import EmbedResult

MODEL = "Model"
PIXELS = "Pixels"
MACHINE = "Machine"
AGAIN = "Running again"

EXAMPLES = """Examples:

  dino-extract embed photos/

  dino-extract embed photos/ --model vitb14-reg --tokens cls,patch --size 518

  dino-extract embed shards/*.tar -o all.h5 --prune

  dino-extract embed photos/ --model vitl14 --device all

  find . -name '*.jpg' -print0 | dino-extract embed - -0 -o found.h5"""


def embed(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Folders, images, quoted globs, .tar and .zip archives, or - for a list on stdin.")
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.h5", help="The HDF5 file; by default the source's name with .h5.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A name from `weights list`, or timm/NAME; default: what --weights holds, or vits14.", rich_help_panel=MODEL),
    ] = EmbedConfig.model,
    weights: Annotated[
        str | None, typer.Option(metavar="PATH", help="Checkpoint file in any layout, or a fine-tuning run folder.", rich_help_panel=MODEL)
    ] = EmbedConfig.weights,
    random_weights: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="Untrained weights, for plumbing tests: features mean nothing.", rich_help_panel=MODEL),
    ] = EmbedConfig.random_weights,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.", rich_help_panel=MODEL)] = EmbedConfig.offline,
    tokens: Annotated[
        str, typer.Option(help="What to keep: cls, patch, registers, mean, with commas.", rich_help_panel=MODEL)
    ] = EmbedConfig.tokens,
    layers: Annotated[
        str | None, typer.Option(help="Keep the same tokens of these blocks too: last4, or 2,5,8,11.", rich_help_panel=MODEL)
    ] = EmbedConfig.layers,
    size: Annotated[
        str | None,
        typer.Option(
            help="Input side in pixels, or HEIGHTxWIDTH; by default the model's own, 224 for released ones.", rich_help_panel=PIXELS
        ),
    ] = None,
    preprocess: Annotated[
        SizePolicy, typer.Option(help="crop: the official transform; squash, pad, native: the whole image.", rich_help_panel=PIXELS)
    ] = EmbedConfig.preprocess,
    alpha: Annotated[
        AlphaPolicy, typer.Option(help="Transparency: dropped as officially, or over white or black.", rich_help_panel=PIXELS)
    ] = EmbedConfig.alpha,
    fast_decode: Annotated[
        bool,
        typer.Option("--fast-decode", help="Decode large JPEGs at a fraction of their size: faster, not exact.", rich_help_panel=PIXELS),
    ] = EmbedConfig.fast_decode,
    max_pixels: Annotated[
        int, typer.Option(min=limits_of(EmbedConfig, "max_pixels").least, help="Do not decode larger images.", rich_help_panel=PIXELS)
    ] = EmbedConfig.max_pixels,
    suffix: Annotated[
        list[str] | None, typer.Option(help="Take exactly files with this suffix (repeatable).", rich_help_panel=PIXELS)
    ] = None,
    null: Annotated[bool, typer.Option("--null", "-0", help="The list on stdin is separated by NUL.", rich_help_panel=PIXELS)] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, ...; several with commas, or all GPUs by `all`.", rich_help_panel=MACHINE)
    ] = EmbedConfig.device,
    dtype: Annotated[Dtype, typer.Option(help="Of the computation.", rich_help_panel=MACHINE)] = EmbedConfig.dtype,
    store_dtype: Annotated[StoreDtype, typer.Option(help="Of the stored embeddings.", rich_help_panel=MACHINE)] = EmbedConfig.store_dtype,
    compile: Annotated[  # noqa: A002 - the name of the option
        Compile, typer.Option(help="Fuse the model by torch.compile; auto: on a GPU, for very many images.", rich_help_panel=MACHINE)
    ] = EmbedConfig.compile,
    resize: Annotated[
        Resize, typer.Option(help="host: decoder processes; device: beside the model; auto: device on a GPU.", rich_help_panel=MACHINE)
    ] = EmbedConfig.resize,
    decode: Annotated[
        Decode, typer.Option(help="device: JPEGs beside the model, by torchcodec, for a GPU that waits.", rich_help_panel=MACHINE)
    ] = EmbedConfig.decode,
    batch: Annotated[int, count_option("Images per batch; auto finds a good size.", MACHINE)] = EmbedConfig.batch,
    workers: Annotated[int, count_option("Decoder processes; auto is one per free CPU.", MACHINE)] = EmbedConfig.workers,
    decode_timeout_s: Annotated[
        float,
        typer.Option(
            "--decode-timeout",
            min=limits_of(EmbedConfig, "decode_timeout_s").least,
            help="Seconds before an image is given up.",
            rich_help_panel=MACHINE,
        ),
    ] = EmbedConfig.decode_timeout_s,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Only the K-th of N parts of the images; see `join`.", rich_help_panel=MACHINE)
    ] = EmbedConfig.shard,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file made with other options.", rich_help_panel=AGAIN)] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Drop rows of images that have gone.", rich_help_panel=AGAIN)] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed images again.", rich_help_panel=AGAIN)] = False,
    max_failures: Annotated[
        str | None, typer.Option(metavar="N|P%", help="Stop with an error above this many failed images.", rich_help_panel=AGAIN)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would need, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the file's path.")] = False,
) -> None:
    """Embed images into one HDF5 file that needs nothing but h5py to read.

    Run the same command again to continue after any interruption, or to bring the file up to date: only what is missing or
    changed is embedded.
    """
    config = EmbedConfig(
        model=model,
        weights=weights,
        random_weights=random_weights,
        offline=offline,
        tokens=tokens,
        layers=layers,
        size=size,
        preprocess=preprocess,
        alpha=alpha,
        fast_decode=fast_decode,
        device=device,
        dtype=dtype,
        store_dtype=store_dtype,
        compile=compile,
        resize=resize,
        decode=decode,
        batch=batch,
        workers=workers,
        decode_timeout_s=decode_timeout_s,
        max_pixels=max_pixels,
        shard=shard,
    )
    limit = most_failures(max_failures)
    from dino_extract.images.finding import require_usable  # loads numpy, which `--help` must not wait for

    listed = ["-0" if null and source == "-" else source for source in sources]
    require_usable(listed)  # nothing is downloaded for a wrong path
    with download_progress(model or "weights", quiet=quiet) as progress:
        # Before torch is loaded and millions of files are listed, so that missing weights are told at once.
        ensure_available(model, weights=weights, random_seed=random_weights, offline=offline, progress=progress)
    from dino_extract.embedding.job import prepare
    from dino_extract.embedding.pipeline import run  # loads torch, which `--help` must not wait for

    job = prepare(listed, output, config, suffixes=suffix or (), stdin=sys.stdin.buffer)
    if not quiet:
        for line in job.describe():
            typer.echo(line, err=True)
    if dry_run:
        plan = job.plan(overwrite=overwrite, retry_failed=retry_failed, prune=prune)
        typer.echo(json.dumps(asdict(plan), indent=2) if as_json else plan.text())
        return
    bar = choose_progress(quiet=quiet)
    try:
        result = run(
            job,
            overwrite=overwrite,
            prune=prune,
            retry_failed=retry_failed,
            max_failures=limit,
            on_progress=bar,
        )
    finally:
        bar.close()
    if not quiet:
        typer.echo(result.text(), err=True)
        typer.echo(_next_step(result, config.shard), err=True)
    typer.echo(json.dumps(asdict(result), indent=2) if as_json else result.path)
    if result.failed:
        raise typer.Exit(ExitCode.FAILURES)


def _next_step(result: EmbedResult, shard: str | None) -> str:
    ending = ".{}-of-{}.h5".format(*shard.split("/")) if shard else ""  # of a file that was not given a name
    if shard and not result.failed and result.path.endswith(ending):
        stem, count = quoted(result.path.removesuffix(ending)), shard.split("/")[1]
        return f"next, when all shards are done: dino-extract join {stem}.*-of-{count}.h5 -o {stem}.h5"
    return f"next: dino-extract info {quoted(result.path)}{' --failures' if result.failed else ''}"
