"""`knn`: classification by nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

import dino_extract as dx
from dino_extract import analysis
from dino_extract.cli.options import (
    AsJson,
    Confusion,
    Dataset,
    LabelDepth,
    Labels,
    Overwrite,
    PerClass,
    Predictions,
    Quiet,
    Seed,
    TestLabels,
    announce,
    check_targets,
    numbers,
    print_json,
    say,
    write_predictions,
)
from dino_extract.names import counted

EXAMPLES = """Examples:

  dino-extract knn train.h5 test.h5  # labels are the folder names

  dino-extract knn photos.h5 --labels labels.csv  # each image by all the others

  dino-extract knn train.h5 test.h5 --per-class 5 --tries 10"""


def knn(
    train: Annotated[str, typer.Argument(metavar="TRAIN.h5", help="Labelled images.")],
    test: Annotated[
        str | None, typer.Argument(metavar="TEST.h5", help="Images to classify. The default is each image by all the others.")
    ] = None,
    labels: Labels = None,
    test_labels: TestLabels = None,
    label_depth: LabelDepth = 1,
    dataset: Dataset = "features",
    k: Annotated[
        str, typer.Option(metavar="K,...", help="Vote with these numbers of neighbours, with commas between them.")
    ] = "10,20,100,200",
    temperature: Annotated[float, typer.Option(help="T of the weights exp(similarity / T) of the votes.")] = 0.07,
    per_class: PerClass = None,
    tries: Annotated[int, typer.Option(min=1, help="With --per-class, repeat the draw so often and average.")] = 1,
    seed: Seed = 0,
    confusion: Confusion = None,
    predictions: Predictions = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Classify images by their nearest neighbours, by the official DINOv2 protocol.

    Prints top-1 and top-5 accuracy for each k, and a table per class.
    """
    check_targets({"table": predictions}, overwrite=overwrite, confusion=confusion)
    wanted = numbers(k, "--k", "10,20,100,200")
    announce("classifying {} by neighbours", test or train, quiet=quiet)
    result = dx.knn(
        train,
        test,
        labels=labels,
        test_labels=test_labels,
        label_depth=label_depth,
        dataset=dataset,
        k=tuple(wanted),
        temperature=temperature,
        per_class=per_class,
        tries=tries,
        seed=seed,
    )
    for line in notes(result.unlabelled, wanted, [score.k for score in result.scores], result.num_train, per_class):
        say(line)
    write_predictions(result, test or train, confusion, predictions, overwrite=overwrite)
    if as_json:
        print_json(result)
        return
    print(f"{counted(result.num_test, 'image')} by {result.num_train:,} neighbours, {len(result.classes)} classes")
    print("    k   top-1   top-5")
    for score in result.scores:
        spread = f"  (top-1 +- {score.top1_std:.1%} over {tries} tries)" if per_class and tries > 1 else ""
        print(f"{score.k:5}  {score.top1:6.2%}  {score.top5:6.2%}{spread}")
    print(f"\nper class, k = {result.table_k}: mean recall {result.mean_recall:.2%}\n{analysis.table_text(result.per_class)}")


def notes(unlabelled: int, wanted: Sequence[int], used: Sequence[int], num_train: int, per_class: int | None = None) -> list[str]:
    """Notes about images that are left out, and values of k that are changed."""
    lines = [f"note: {counted(unlabelled, 'image')} without a label {'is' if unlabelled == 1 else 'are'} left out"] if unlabelled else []
    if too_many := [str(k) for k in wanted if k > max(used)]:
        reason = f"there are {num_train:,} training images" if per_class is None else "`--per-class` draws no more of a class"
        lines.append(f"note: k = {', '.join(too_many)} became {max(used)}: {reason}")
    return lines
