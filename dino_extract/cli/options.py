"""Options that several commands share, each stated once, and how results are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

import typer

import dino_extract as dx
from dino_extract import analysis, pictures
from dino_extract.cli.help import EXPERT
from dino_extract.config import Dtype
from dino_extract.errors import ConfigError, ExitCode
from dino_extract.files import check_target, replace_atomically
from dino_extract.names import counted
from dino_extract.results import plain
from dino_extract.weights.registry import checkpoints

Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="CSV|H5:DATASET",
        help="Read labels from a file with path,label lines, or from a dataset with one label per row. The default is the folder names.",
    ),
]
TestLabels = Annotated[
    str | None,
    typer.Option("--test-labels", metavar="CSV|H5:DATASET", help="Read the labels of TEST.h5 from here. The default is --labels."),
]
LabelDepth = Annotated[
    int, typer.Option("--label-depth", help="Take the class from this folder above an image. 1 is the folder that it is in.")
]
Dataset = Annotated[
    str, typer.Option("--dataset", metavar="NAME", help="Use these vectors of the file, such as mean_features or layers/11/features.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]
Sheet = Annotated[str | None, typer.Option("--sheet", metavar="FILE.png", help="Draw the images found as a contact sheet.")]
Threshold = Annotated[float, typer.Option("--threshold", help="Cosine from which two images count as duplicates, above 0 and up to 1.")]
PerClass = Annotated[
    int | None, typer.Option("--per-class", metavar="N", help="Train on N images of each class, drawn at random (few-shot).")
]
Confusion = Annotated[str | None, typer.Option("--confusion", metavar="FILE.png", help="Draw the confusion matrix.")]
Predictions = Annotated[
    str | None,
    typer.Option(
        "--predictions", metavar="FILE.csv", help="Write the predicted class of each test image, the most confident errors first."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON; see docs/json.md.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a result that exists already.")]


def count_or_auto(text: str | int) -> int:
    """A number of at least 1, or 0 for `auto`: the parser of options that can choose a number.

    Raises:
        BadParameter: the text is neither.
    """
    if str(text) in ("auto", "0"):
        return 0
    if not str(text).isascii() or not str(text).isdigit():
        raise typer.BadParameter(f"must be a whole number or `auto`, got `{text}`")
    return int(text)


def count_option(help_text: str, panel: str | None = None) -> Any:
    """An option that takes a number or `auto`. The default is `auto`."""
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


def announce(work: str, *files: str, quiet: bool = False) -> None:
    """Print what a command begins to do, and with how many images, before the libraries for it are loaded.

    Args:
        work: text with `{}` for the number of images.
        files: of the images.
        quiet: print nothing.
    """
    if quiet:
        return
    count = 0
    for file in files:
        with dx.open(file) as store:
            count += len(store)
    say(f"{work.format(counted(count, 'image'))} ...")


def check_targets(targets: Mapping[str, str | None], *, overwrite: bool, confusion: str | None = None) -> None:
    """Check before the work that its results can be written.

    Args:
        targets: for each kind of result its file, or None where it is not wanted.
        overwrite: whether existing files are replaced.
        confusion: the file of the confusion matrix, or None.

    Raises:
        ConfigError: a file exists, or cannot be written.
    """
    for name, path in targets.items():
        check = pictures.check_picture_target if name in ("picture", "contact sheet") else check_target
        check(path, name, overwrite=overwrite)
    if confusion is not None:
        pictures.check_confusion_target(confusion, overwrite=overwrite)


def file_in(folder: str | None, name: str) -> str | None:
    """The path of a file in a folder that exists; None if the folder is not wanted, or is made later."""
    return os.path.join(folder, name) if folder and os.path.isdir(folder) else None


def end_with_failures(failed: Sequence[str]) -> None:
    """Name the images that could not be embedded, and end with the exit code for failures; nothing where there are none."""
    if failed:
        for line in failed:
            say(f"left out: {line}")
        raise typer.Exit(ExitCode.FAILURES)


def draw_sheet(result: Any, file: str, path: str | None, *, overwrite: bool, **options: Any) -> None:
    """Draw the contact sheet of a result, if one is wanted, and say where it is. The options are those of `dx.sheet`."""
    if path is None:
        return
    drawn = dx.sheet(result, file, path, overwrite=overwrite, **options)
    say(f"contact sheet of {drawn.text}: {drawn.path}" if drawn.path else f"no contact sheet: {drawn.text}")
    if drawn.lost:
        say(f"note: {counted(len(drawn.lost), 'image')} moved or deleted since embedding, such as `{drawn.lost[0]}`; shown as grey tiles")


def write_images(path: str, images: Sequence[str], columns: Mapping[str, Sequence[Any]], *, overwrite: bool) -> None:
    """Write a table with a line for each image."""
    rounded = {name: [round(value, 4) if isinstance(value, float) else value for value in values] for name, values in columns.items()}
    analysis.write_table(path, images, rounded, overwrite=overwrite)
    say(f"{counted(len(images), 'image')}: {path}")


def write_predictions(result: Any, test: str, confusion: str | None, predictions: str | None, *, overwrite: bool) -> None:
    """Draw the confusion matrix and write the predictions of a classification, where they are wanted."""
    if confusion:
        dx.draw_confusion(result.confusion, result.classes, confusion, overwrite=overwrite)
        say(f"confusion matrix: {confusion}")
    if predictions:
        with dx.open(test) as store:
            analysis.write_answers(result.answers, store.paths, result.classes, predictions, overwrite=overwrite)
        say(f"predictions, the most confident errors first: {predictions}")


def write_list(path: str, images: Sequence[str], *, overwrite: bool) -> None:
    """Write one path on each line, in its own bytes."""
    with (
        replace_atomically(path, "list", overwrite=overwrite) as draft,
        open(draft, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        file.writelines(f"{image}\n" for image in images)
    say(f"{len(images):,} paths: {path}")
    warn_of_line_breaks(images)


def warn_of_line_breaks(paths: Sequence[str]) -> None:
    """Warn if a list with one path a line would name other files, because a path has a line break."""
    if broken := sum("\n" in path for path in paths):
        say(f"warning: {broken:,} of the paths have a line break in them and take several lines: do not delete by this list")


def numbers(text: str | None, option: str, example: str) -> list[int]:
    """Whole numbers with commas between them. Without a text there are none.

    Raises:
        ConfigError: the text is something else.
    """
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"`{option}` takes numbers, got `{text}`", hint=f"for example `{option} {example}`") from None


def words(text: str | None) -> list[str]:
    """Words with commas between them. Without a text there are none."""
    return [part.strip() for part in text.split(",")] if text else []


def print_json(value: Any) -> None:
    """Print a result as JSON on stdout. NaN, which JSON does not have, becomes null."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=True))
