"""`knn`: how well neighbours tell the class of an image."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dino_extract.cli.options import AsJson, Dataset, LabelDepth, Labels, Predictions, Seed, print_json, say
from dino_extract.errors import ConfigError

EXAMPLES = """Examples:

  dino-extract knn train.h5 test.h5                        labels are the folder names

  dino-extract knn photos.h5 --labels labels.csv           one file: each image by all the others

  dino-extract knn train.h5 test.h5 --per-class 5 --tries 10"""


def knn(
    train: Annotated[str, typer.Argument(metavar="TRAIN.h5", help="Labelled images.")],
    test: Annotated[str | None, typer.Argument(metavar="TEST.h5", help="Images to classify; without it, each one by all others.")] = None,
    labels: Labels = None,
    test_labels: Annotated[str | None, typer.Option(metavar="CSV|H5:DATASET", help="Labels of TEST.h5; by default --labels.")] = None,
    label_depth: LabelDepth = 1,
    dataset: Dataset = "features",
    k: Annotated[str, typer.Option(help="Numbers of neighbours, with commas.")] = "10,20,100,200",
    temperature: Annotated[float, typer.Option(help="T of the weights exp(similarity / T).")] = 0.07,
    per_class: Annotated[int | None, typer.Option(help="Few-shot: train on this many images of each class.")] = None,
    tries: Annotated[int, typer.Option(help="Few-shot: random draws to average.")] = 1,
    seed: Seed = 0,
    confusion: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw the confusion matrix.")] = None,
    predictions: Predictions = None,
    as_json: AsJson = False,
) -> None:
    """Classify images by their nearest neighbours, by the official DINOv2 protocol.

    Prints top-1 and top-5 accuracy for each k, and a table per class.
    """
    from dino_extract.analysis.probes import knn as analysis  # loads torch, which `--help` must not wait for
    from dino_extract.analysis.probes.scores import printable, table_text, write_answers
    from dino_extract.analysis.vectors.stored import opened
    from dino_extract.analysis.writing import require_place
    from dino_extract.pictures.confusion import draw_confusion, require_confusion_place

    require_confusion_place(confusion)
    require_place(predictions, "table")
    wanted = _parse_k(k)
    result = analysis.knn(
        train,
        test,
        labels=labels,
        test_labels=test_labels,
        label_depth=label_depth,
        dataset=dataset,
        k=wanted,
        temperature=temperature,
        per_class=per_class,
        tries=tries,
        seed=seed,
    )
    for line in notes(result.unlabelled, wanted, [score.k for score in result.scores], result.num_train, per_class):
        say(line)
    if confusion:
        draw_confusion(result.confusion, result.classes, confusion)
        say(f"confusion matrix (k = {result.table_k}): {confusion}")
    if predictions:
        with opened(test or train) as store:
            write_answers(result.answers, store.paths, result.classes, predictions, overwrite=True)
        say(f"predictions (k = {result.table_k}), the surest mistakes first: {predictions}")
    if as_json:
        shown = {name: value for name, value in vars(result).items() if name != "answers"}
        lists = {"scores": [asdict(score) for score in result.scores], "per_class": [asdict(line) for line in result.per_class]}
        print_json({**shown, **lists, "mean_recall": result.mean_recall, "confusion": printable(result.confusion)})
        return
    print(f"{result.num_test:,} images by {result.num_train:,} neighbours, {len(result.classes)} classes")
    print("    k   top-1   top-5")
    for score in result.scores:
        spread = f"  (top-1 +- {score.top1_std:.1%} over {tries} tries)" if per_class and tries > 1 else ""
        print(f"{score.k:5}  {score.top1:6.2%}  {score.top5:6.2%}{spread}")
    print(f"\nper class, k = {result.table_k}: mean recall {result.mean_recall:.2%}\n{table_text(result.per_class)}")


def notes(unlabelled: int, wanted: tuple[int, ...], used: list[int], num_train: int, per_class: int | None = None) -> list[str]:
    """What the user should know about what was left out or changed."""
    lines = [f"note: {unlabelled:,} images without a label are left out"] if unlabelled else []
    if too_many := [str(k) for k in wanted if k > max(used)]:
        reason = f"there are {num_train:,} training images" if per_class is None else "`--per-class` draws no more of a class"
        lines.append(f"note: k = {', '.join(too_many)} became {max(used)}: {reason}")
    return lines


def _parse_k(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"`--k` takes numbers, got `{text}`", hint="for example `--k 10,20,100,200`") from None
