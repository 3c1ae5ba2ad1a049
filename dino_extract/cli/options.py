"""Options that several commands share, each stated once, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

import typer

from dino_extract.cli.help import EXPERT
from dino_extract.config import Dtype
from dino_extract.errors import ExitCode
from dino_extract.results import plain
from dino_extract.weights.registry import checkpoints

Labels = Annotated[
    str | None,
    typer.Option("--labels", metavar="CSV|H5:DATASET", help="path,label lines, or one label per row; by default the folder names."),
]
LabelDepth = Annotated[int, typer.Option("--label-depth", help="Which folder above an image names its class; 1 is the nearest.")]
Dataset = Annotated[str, typer.Option("--dataset", help="Which vectors of the file: features, mean_features, layers/11/features, ...")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything drawn at random.")]
Sheet = Annotated[str | None, typer.Option("--sheet", metavar="FILE.png", help="Draw the images found as a contact sheet.")]
Predictions = Annotated[
    str | None,
    typer.Option("--predictions", metavar="FILE.csv", help="Write what each test image was taken for, the surest mistakes first."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON; see docs/json.md.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a result that exists already.")]


def count_or_auto(text: str | int) -> int:
    """A number of at least 1, or 0 for `auto`; the parser of options that choose for themselves.

    Raises:
        BadParameter: neither.
    """
    if str(text) in ("auto", "0"):
        return 0
    if not str(text).isascii() or not str(text).isdigit():
        raise typer.BadParameter(f"must be a whole number or `auto`, got `{text}`")
    return int(text)


def count_option(help_text: str, panel: str | None = None) -> Any:
    """An option that takes a number or `auto`, which is its default."""
    return typer.Option(parser=count_or_auto, metavar="N|auto", show_default="auto", help=help_text, rich_help_panel=panel)


def model_names() -> list[str]:
    """The names of all models, for the shell to complete."""
    return list(checkpoints())


MODEL = "Model"  # titles in `--help`
MACHINE = "Machine"

# Of a model that runs, for every command that embeds.
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        autocompletion=model_names,
        rich_help_panel=MODEL,
        help="A name from `weights list`, or timm/NAME. The default is the model of --weights, or vits14.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="PATH", rich_help_panel=MODEL, help="A checkpoint file in any layout, or the folder of a run."),
]
RandomWeights = Annotated[
    int | None,
    typer.Option("--random-weights", metavar="SEED", rich_help_panel=EXPERT, help="Use untrained weights. The features mean nothing."),
]
Offline = Annotated[bool, typer.Option("--offline", rich_help_panel=MODEL, help="Download nothing.")]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="PIXELS",
        rich_help_panel=MODEL,
        help="Side of the model's input, or HEIGHTxWIDTH. The default is the model's own, 224 for released ones.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", rich_help_panel=MACHINE, help="Where the model runs: auto, cpu, cuda or cuda:1.")
]
ComputeDtype = Annotated[
    Dtype,
    typer.Option("--dtype", metavar="TYPE", rich_help_panel=MACHINE, help="Precision of the model: auto, float32 or bfloat16."),
]
Batch = Annotated[
    int,
    count_option("Images that the model computes together. `auto` finds a good number.", MACHINE),
]
Workers = Annotated[int, count_option("Decoder processes. `auto` is one for each free CPU.", EXPERT)]


def given_options(context: typer.Context, config_class: type[Any]) -> dict[str, Any]:
    """The values of a command that are fields of a configuration class, by their names."""
    return {field.name: context.params[field.name] for field in fields(config_class) if field.name in context.params}


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def is_store(name: str) -> bool:
    """Whether an argument names an embedded file, by its suffix or what it begins with, and not images."""
    from dino_extract.store import begins_as_hdf5  # loads h5py, which `--help` must not wait for

    return name.endswith((".h5", ".hdf5")) or begins_as_hdf5(name)


def note_lost(names: Sequence[str]) -> None:
    """Say that images could not be drawn; nothing where all were."""
    if names:
        say(f"note: {len(names):,} images are no longer where they were embedded from, such as `{names[0]}`; their places are grey")


def end_with_failures(failed: Sequence[str]) -> None:
    """Name the images that could not be embedded, and end with the exit code that says so; nothing where there are none."""
    if failed:
        for line in failed:
            say(f"left out: {line}")
        raise typer.Exit(ExitCode.FAILURES)


def write_list(list_path: str, paths: Sequence[str]) -> None:
    """Write paths one a line, in their own bytes."""
    from dino_extract.analysis.writing import writing  # loads h5py, which `--help` must not wait for

    with writing(list_path, "list"), open(list_path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(f"{path}\n" for path in paths)
    say(f"{len(paths):,} paths: {list_path}")
    warn_of_line_breaks(paths)


def write_images(output: str, paths: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a table with a line for each image."""
    from dino_extract.analysis.tables import write_table  # loads h5py, which `--help` must not wait for

    write_table(output, paths, columns, overwrite=True)
    say(f"{len(paths):,} images: {output}")


def warn_of_line_breaks(paths: Sequence[str]) -> None:
    """Say so where a list with a path in each line names files that are none of its paths."""
    if broken := sum("\n" in path for path in paths):
        say(f"warning: {broken:,} of the paths have a line break in them and take several lines: do not delete by this list")


def print_json(value: Any) -> None:
    """A result for machines, on stdout; NaN, which JSON does not have, becomes null."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=True))
