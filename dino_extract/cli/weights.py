"""`weights`: the models, and their files on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dino_extract import weights
from dino_extract.cli.help import Command, Group
from dino_extract.cli.options import AsJson, Offline, Quiet, Size, model_names, print_json, say
from dino_extract.cli.progress import BYTES, choose_progress
from dino_extract.errors import ExitCode
from dino_extract.weights import cache, locate
from dino_extract.weights.registry import Checkpoint, checkpoints, find_checkpoint
from dino_extract.weights.resolve import weights_here

PULL_CONNECT_TIMEOUT_S = 10.0  # somebody who asks for a download waits for a slow network

app = typer.Typer(cls=Group, help="List, download, check and convert model weights.", pretty_exceptions_enable=False)

Names = Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=model_names, help="Models from `weights list`.")]


@app.command(cls=Command, name="list")
def list_models(as_json: AsJson = False) -> None:
    """List the models, their size and licence, and where their weights are on this machine."""
    rows = [_facts(checkpoint) for checkpoint in checkpoints().values()]
    if as_json:
        print_json(rows)
        return
    print(f"{'name':12}{'parameters':>14}{'download':>12}  {'licence':12}on this machine")
    for row in rows:
        size = f"{row['bytes'] / 1e6:,.0f} MB" if row["bytes"] else "-"
        found = ", ".join(dict.fromkeys(place["kind"] for place in row["present"])) or "no"
        print(f"{row['name']:12}{row['parameters']:>14,}{size:>12}  {row['licence']:12}{found}")


@app.command(cls=Command)
def pull(
    names: Names,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Download even if the cache has a copy, and replace it.")] = False,
    quiet: Quiet = False,
) -> None:
    """Download released weights into the cache, check them, and print where they are."""
    for checkpoint in [find_checkpoint(name) for name in names]:
        with choose_progress(quiet=quiet, unit=BYTES, title=checkpoint.name) as progress:
            path = cache.fetch(
                checkpoint,
                overwrite=overwrite,
                progress=progress,
                waiting=lambda: say("waiting for another process that downloads the same weights"),
                connect_timeout_s=PULL_CONNECT_TIMEOUT_S,
            )
        print(path)


@app.command(cls=Command)
def verify(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|PATH]...", help="Models or files. The default is every model on this machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read weights files whole and check hashes, layout and numbers.

    The exit code is 1 if a file is not what it should be.
    """
    results = weights.verify_weights(targets)
    if as_json:
        print_json(results)
    for result in results if not as_json else []:
        print(_checked(result))
    if not results:
        say("there are no weights on this machine")
    if any(result.problem for result in results):
        raise typer.Exit(ExitCode.ERROR)


@app.command(cls=Command, name="import")
def import_file(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A released file, from the official site or a known mirror.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The model it holds.")],
) -> None:
    """Put a released file that was copied here into the cache, after checking it, and print where it is."""
    print(cache.add_file(path, find_checkpoint(name)))


@app.command(cls=Command)
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint file of any layout, or the folder of a run.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A .safetensors file. With `official` a .pth file, with `hf` a folder.")],
    to: Annotated[
        Literal["official", "hf", "timm", "dino-extract"],
        typer.Option("--to", metavar="LAYOUT", help="official, hf, timm or dino-extract."),
    ],
    store_dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Precision of the stored numbers; the default is that of IN."),
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="TEXT", help="Licence to record in OUT, with `--to dino-extract`.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Input side to record in OUT, with `--to dino-extract`.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Write weights in the layout of another library, and print the path of the new file."""
    written, notes = weights.convert(source, target, to, store_dtype=store_dtype, licence=licence, size=size, overwrite=overwrite)
    for note in notes:
        say(f"note: {note}")
    print(written)


@app.command(cls=Command, name="onnx")
def write_onnx_file(
    source: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A model, a checkpoint file of any layout, or the folder of a run.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    size: Size = None,
    offline: Offline = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Write a model as ONNX, for runtimes without torch, and print the path of the new file.

    The file takes any number of images of one size. Its outputs have the names of the datasets of `embed`. It is compared with the model
    in onnxruntime.
    """
    is_file = Path(source).expanduser().exists()
    model = weights.load(None if is_file else source, weights=source if is_file else None, offline=offline)
    written = weights.write_onnx(model, target, size=size, overwrite=overwrite)
    for note in model.notes:
        say(f"note: {note}")
    say(f"largest difference from the model: {written.max_difference:.1e} of a token's norm")
    for path in (written.path, written.data_path):
        if path is not None:
            print(path)


@app.command(cls=Command, name="path")
def print_path(name: Annotated[str, typer.Argument(metavar="NAME", help="A model from `weights list`.")]) -> None:
    """Print the file that `--model NAME` reads; never downloads."""
    checkpoint = find_checkpoint(name)
    found, unusable = weights_here(checkpoint)
    if found is None:
        raise locate.missing_error(checkpoint, "`weights path` never downloads", unusable)
    print(found.path)


def _checked(result: weights.WeightsCheck) -> str:
    what = f"released {result.released}" if result.released else f"{result.model}, not a released file"
    return f"{'damaged' if result.problem else 'ok'}\t{result.problem or what}\t{result.path}\t{result.sha256}"


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
