"""`embed`: images in, one HDF5 file out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dino_extract as dx
from dino_extract.cli.config_file import ConfigFile
from dino_extract.cli.help import EXPERT
from dino_extract.cli.options import (
    MACHINE,
    MODEL,
    AsJson,
    Batch,
    ComputeDtype,
    Device,
    Model,
    Offline,
    Quiet,
    RandomWeights,
    Size,
    Weights,
    Workers,
    given_options,
    print_json,
    say,
)
from dino_extract.cli.progress import BYTES, choose_progress
from dino_extract.config import AlphaPolicy, Compile, Decode, EmbedConfig, Resize, SizePolicy, StoreDtype, most_failures
from dino_extract.errors import ExitCode
from dino_extract.files import require_folder
from dino_extract.images.sources import check_sources
from dino_extract.names import quoted
from dino_extract.weights import ensure_available

if TYPE_CHECKING:
    from dino_extract.embedding.stages import EmbedResult

IMAGES = "Images"
AGAIN = "Running again"

EXAMPLES = """Examples:
  dino-extract embed photos/
  dino-extract embed photos/ --model vitb14-reg --tokens cls,patch --size 518
  dino-extract embed shards/*.tar -o all.h5 --prune
  dino-extract embed photos/ --model vitl14 --device all
  find . -name '*.jpg' -print0 | dino-extract embed - -0 -o found.h5"""


def embed(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Folders, images, quoted globs, .tar and .zip archives, or - for a list of paths on stdin."),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE.h5", help="The HDF5 file to write. The default is the name of the source with .h5."),
    ] = None,
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what the run would need, and write nothing.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    model: Model = EmbedConfig.model,
    weights: Weights = EmbedConfig.weights,
    tokens: Annotated[
        str,
        typer.Option(metavar="KINDS", rich_help_panel=MODEL, help="Tokens to store: cls, patch, registers or mean, several with commas."),
    ] = EmbedConfig.tokens,
    layers: Annotated[
        str | None,
        typer.Option(metavar="BLOCKS", rich_help_panel=MODEL, help="Store these tokens of earlier blocks too: last4, or 2,5,8,11."),
    ] = EmbedConfig.layers,
    size: Size = EmbedConfig.size,
    offline: Offline = EmbedConfig.offline,
    preprocess: Annotated[
        SizePolicy,
        typer.Option(
            metavar="POLICY",
            rich_help_panel=IMAGES,
            help="How an image gets that size. crop is the official transform; squash, pad and native keep the whole image.",
        ),
    ] = EmbedConfig.preprocess,
    suffix: Annotated[
        list[str] | None,
        typer.Option(metavar=".SUFFIX", rich_help_panel=IMAGES, help="Take exactly the files with this suffix. May be repeated."),
    ] = None,
    null: Annotated[bool, typer.Option("--null", "-0", rich_help_panel=IMAGES, help="Paths on stdin are separated by NUL.")] = False,
    device: Device = EmbedConfig.device,
    dtype: ComputeDtype = EmbedConfig.dtype,
    batch: Batch = EmbedConfig.batch,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", rich_help_panel=MACHINE, help="Embed only the K-th of N parts of the images. `join` joins the parts."),
    ] = EmbedConfig.shard,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=AGAIN, help="Replace a file that was made with other options.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", rich_help_panel=AGAIN, help="Remove the rows of deleted images.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", rich_help_panel=AGAIN, help="Try failed images again.")] = False,
    max_failures: Annotated[
        str | None, typer.Option(metavar="N|P%", rich_help_panel=AGAIN, help="Stop with an error when more images fail.")
    ] = None,
    random_weights: RandomWeights = EmbedConfig.random_weights,
    alpha: Annotated[
        AlphaPolicy,
        typer.Option(
            metavar="POLICY",
            rich_help_panel=EXPERT,
            help="What happens to transparency. drop ignores it, as the official transform does; white and black are a background.",
        ),
    ] = EmbedConfig.alpha,
    fast_decode: Annotated[
        bool,
        typer.Option("--fast-decode", rich_help_panel=EXPERT, help="Decode large JPEGs at a fraction of their size: faster, not exact."),
    ] = EmbedConfig.fast_decode,
    max_pixels: Annotated[int, typer.Option(min=1, rich_help_panel=EXPERT, help="Images with more pixels fail.")] = EmbedConfig.max_pixels,
    store_dtype: Annotated[
        StoreDtype, typer.Option(metavar="TYPE", rich_help_panel=EXPERT, help="Precision of the stored embeddings: float16 or float32.")
    ] = EmbedConfig.store_dtype,
    compile: Annotated[  # noqa: A002 - the name of the option
        Compile,
        typer.Option(rich_help_panel=EXPERT, help="Compile the model with torch.compile. auto does on a GPU for very many images."),
    ] = EmbedConfig.compile,
    resize: Annotated[
        Resize,
        typer.Option(
            rich_help_panel=EXPERT, help="Where small images are resized: in the decoder processes (host), or on the GPU (device)."
        ),
    ] = EmbedConfig.resize,
    decode: Annotated[
        Decode,
        typer.Option(
            rich_help_panel=EXPERT, help="host: decode in worker processes. device: decode JPEGs on the GPU, which needs torchcodec."
        ),
    ] = EmbedConfig.decode,
    workers: Workers = EmbedConfig.workers,
    decode_timeout_s: Annotated[
        float,
        typer.Option("--decode-timeout", min=0.1, metavar="SECONDS", rich_help_panel=EXPERT, help="Images that take longer fail."),
    ] = EmbedConfig.decode_timeout_s,
) -> None:
    """Embed images into one HDF5 file that needs nothing but h5py to read.

    Run the same command again to continue after an interruption, or to update the file: only missing and changed images are embedded.

    Every option can be set in the environment too: DINO_EXTRACT_EMBED_MODEL=vitb14 is --model vitb14.
    """
    options = given_options(context, EmbedConfig)
    listed = _checked_sources(sources, null=null, suffixes=suffix or ())
    EmbedConfig(**options)
    most_failures(max_failures)
    require_folder(output or "")
    with choose_progress(quiet=quiet, unit=BYTES, title=model or "") as download:
        ensure_available(model, weights=weights, random_weights=random_weights, offline=offline, progress=download)
    # Everything above is checked before torch is loaded, which takes seconds.
    again = {"overwrite": overwrite, "prune": prune, "retry_failed": retry_failed}
    inputs: dict[str, Any] = {"suffixes": suffix or (), "stdin": sys.stdin.buffer, **again, **options}
    tell = (lambda text: None) if quiet else say
    tell("finding the images and loading the model")
    inputs["on_start"] = lambda job: tell("\n".join(job.describe()))
    if dry_run:
        forecast = dx.plan(listed, output, **inputs)
        print_json(forecast) if as_json else print(forecast.text())
        return
    with choose_progress(quiet=quiet) as bar:
        result = dx.embed(listed, output, max_failures=max_failures, on_progress=bar, **inputs)
    tell(f"{result.text()}\n{_next_step(result, shard)}")
    print_json(result) if as_json else print(result.path)
    if result.failed:
        raise typer.Exit(ExitCode.FAILURES)


def _checked_sources(sources: list[str], *, null: bool, suffixes: Sequence[str]) -> list[str]:
    listed = ["-0" if null and source == "-" else source for source in sources]
    check_sources(listed, suffixes)
    return listed


def _next_step(result: EmbedResult, shard: str | None) -> str:
    ending = ".{}-of-{}.h5".format(*shard.split("/")) if shard else ""  # of a file that was not given a name
    if shard and not result.failed and result.path.endswith(ending):
        stem, count = quoted(result.path.removesuffix(ending)), shard.split("/")[1]
        return f"next, when all shards are done: dino-extract join {stem}.*-of-{count}.h5 -o {stem}.h5"
    return f"next: dino-extract info {quoted(result.path)}{' --failures' if result.failed else ''}"
