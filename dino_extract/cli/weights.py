"""`weights`: the models there are, and their files on this machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from tqdm import tqdm

from dino_extract.cli.help import Command, Group
from dino_extract.errors import ExitCode
from dino_extract.weights import cache, locate
from dino_extract.weights.registry import Checkpoint, checkpoints, find_checkpoint
from dino_extract.weights.resolve import weights_here

LINE_EVERY_S = 30.0
PULL_CONNECT_TIMEOUT_S = 10.0  # who asks for a download explicitly waits for a slow network

app = typer.Typer(cls=Group, help="List, download, check and convert model weights.", pretty_exceptions_enable=False)

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Models from `weights list`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command(cls=Command, name="list")
def list_models(as_json: AsJson = False) -> None:
    """List the models, their size and licence, and where their weights are on this machine."""
    rows = [_facts(checkpoint) for checkpoint in checkpoints().values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    typer.echo(f"{'name':12}{'parameters':>14}{'download':>12}  {'licence':12}on this machine")
    for row in rows:
        size = f"{row['bytes'] / 1e6:,.0f} MB" if row["bytes"] else "-"
        found = ", ".join(dict.fromkeys(place["kind"] for place in row["present"])) or "no"
        typer.echo(f"{row['name']:12}{row['parameters']:>14,}{size:>12}  {row['licence']:12}{found}")


@app.command(cls=Command)
def pull(
    names: Names,
    force: Annotated[bool, typer.Option("--force", help="Download even if the cache has a copy, and replace it.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Download released weights into the cache, check them, and print where they are."""
    for checkpoint in [find_checkpoint(name) for name in names]:
        with download_progress(checkpoint.name, quiet=quiet) as progress:
            path = cache.fetch(checkpoint, force=force, progress=progress, waiting=_say_waiting, connect_timeout_s=PULL_CONNECT_TIMEOUT_S)
        typer.echo(path)


@app.command(cls=Command)
def verify(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|PATH]...", help="Models or files; all models on this machine by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read weights files whole and check hashes, layout and numbers.

    Ends with 1 if any file is not what it should be.
    """
    from dino_extract.weights.verify import verify_file, verify_model  # loads torch, which `--help` must not wait for

    results = []
    for target in targets or [checkpoint.name for checkpoint in checkpoints().values()]:
        if Path(target).exists():
            results.append(verify_file(Path(target)))
            continue
        checkpoint = find_checkpoint(target)
        found = verify_model(checkpoint)
        if targets and not found:
            raise locate.missing_error(checkpoint, "checking does not download them")
        results += found
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=2))
    else:
        for result in results:
            what = f"released {result.released}" if result.released else f"{result.model}, not a released file"
            typer.echo(f"{'damaged' if result.problem else 'ok'}\t{result.problem or what}\t{result.path}\t{result.sha256}")
    if not results:
        typer.echo("no weights on this machine", err=True)
    if any(result.problem for result in results):
        raise typer.Exit(ExitCode.ERROR)


@app.command(cls=Command, name="import")
def import_file(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A released file, from the official site or a known mirror.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The model it holds.")],
) -> None:
    """Put a released file that was copied here into the cache, after checking it, and print where it is."""
    typer.echo(cache.add_file(path, find_checkpoint(name)))


@app.command(cls=Command)
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint file of any layout, or the folder of a run.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A .safetensors file; .pth with `official`; a folder with `hf`.")],
    to: Annotated[Literal["official", "hf", "timm", "dino-extract"], typer.Option("--to", help="The layout to write.")],
    dtype: Annotated[Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Storage type; as in IN by default.")] = None,
    licence: Annotated[str | None, typer.Option(help="Record this licence in OUT (`--to dino-extract`).")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Record this input side in pixels in OUT (`--to dino-extract`).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Write weights in the layout of another library, and print the file written."""
    from dino_extract.weights.export import convert as run  # loads torch, which `--help` must not wait for

    written, notes = run(source, target, to, dtype=dtype, licence=licence, size=size, overwrite=overwrite)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(written)


@app.command(cls=Command, name="onnx")
def write_onnx_file(
    source: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A model, a checkpoint file of any layout, or the folder of a run.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    size: Annotated[str | None, typer.Option(help="Input side in pixels, or HEIGHTxWIDTH; the model's own by default.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Write a model as ONNX, for runtimes without torch, and print the file written.

    Any number of images of one size; the outputs are named as the datasets of `embed`. It is compared with the model in onnxruntime.
    """
    from dino_extract.weights.loading import load  # loads torch, which `--help` must not wait for
    from dino_extract.weights.onnx_file import write_onnx

    is_file = Path(source).expanduser().exists()
    model = load(None if is_file else source, weights=source if is_file else None, offline=offline)
    written = write_onnx(model, target, size=size, overwrite=overwrite)
    for note in model.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"largest difference to the model: {written.max_difference:.1e} of a token's norm", err=True)
    for path in (written.path, written.data_path):
        if path is not None:
            typer.echo(path)


@app.command(cls=Command, name="path")
def print_path(name: Annotated[str, typer.Argument(metavar="NAME", help="A model from `weights list`.")]) -> None:
    """Print the file that `--model NAME` reads; never downloads."""
    checkpoint = find_checkpoint(name)
    found, unusable = weights_here(checkpoint)
    if found is None:
        raise locate.missing_error(checkpoint, "`weights path` never downloads", unusable)
    typer.echo(found.path)


@contextmanager
def download_progress(name: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A function to call with the bytes there and in all: a bar on a terminal, a line every 30 s elsewhere, on stderr."""
    if quiet or not sys.stderr.isatty():
        yield _silent if quiet else _Lines(name)
        return
    with tqdm(desc=name, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True, delay=0.2) as bar:

        def move(there: int, total: int) -> None:
            bar.total = total
            bar.update(there - bar.n)

        yield move


class _Lines:
    def __init__(self, name: str) -> None:
        self._name = name
        self._printed_at = time.monotonic()

    def __call__(self, there: int, total: int) -> None:
        if time.monotonic() - self._printed_at >= LINE_EVERY_S:
            self._printed_at = time.monotonic()
            typer.echo(f"{self._name}: {there / 1e6:,.0f} of {total / 1e6:,.0f} MB", err=True)


def _silent(there: int, total: int) -> None:
    """Show nothing."""


def _say_waiting() -> None:
    typer.echo("another process is downloading the same weights, waiting for it", err=True)


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "aliases": list(checkpoint.aliases),
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.size_bytes,
        "licence": checkpoint.licence,
        "sha256": checkpoint.sha256,
        "url": checkpoint.url,
        "architecture": dict(checkpoint.architecture),
        "present": [{"kind": place.kind, "path": str(place.path)} for place in locate.present_places(checkpoint)],
    }
