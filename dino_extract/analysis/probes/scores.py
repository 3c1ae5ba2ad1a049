"""How well predicted classes agree with true ones: accuracy, a table per class, and the confusion matrix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.tables import write_table

MAX_CLASSES = 1000  # of a drawn or printed confusion matrix. With more, a class is less than two pixels, and the numbers are megabytes
MAX_LINES = 100  # in the printed table of classes


@dataclass(frozen=True)
class ClassScore:
    """One line of the per-class table.

    Args:
        name: the class.
        images: number of test images of the class.
        recall: share of them that were recognised. NaN if there are none.
        precision: share of them among the images predicted as this class. NaN if there are none.
        mistaken_for: the most common wrong prediction for its images, "" if all are right.
    """

    name: str
    images: int
    recall: float
    precision: float
    mistaken_for: str


class Answers(NamedTuple):
    """The predicted class of each test image; with several tries, in the last one.

    Args:
        rows: (n,) int64 row of the image among the embedded images of the test file.
        true: (n,) int64 its class.
        predicted: (n,) int64 the predicted class.
        share: (n,) float32, 0..1: share of the votes, or probability, of the predicted class.
    """

    rows: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    share: NDArray[np.float32]


def write_answers(
    answers: Answers, paths: Sequence[str], classes: Sequence[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write path, label, predicted class and share of each test image as CSV, the most confident errors first: some are wrong labels.

    Args:
        answers: the predictions.
        paths: paths of all embedded images of the test file.
        classes: names of the classes.
        output: the file.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the file cannot be written, or exists.
    """
    is_wrong = answers.predicted != answers.true
    order = np.argsort(np.where(is_wrong, -answers.share, answers.share + 1), kind="stable")
    rows, true, predicted, share = (column[order].tolist() for column in answers)
    columns = {"label": [classes[code] for code in true], "predicted": [classes[code] for code in predicted]}
    write_table(output, [paths[row] for row in rows], {**columns, "share": [round(value, 4) for value in share]}, overwrite=overwrite)


def top_accuracy(scores_BC: Tensor, codes_B: Tensor, top: int) -> int:
    """The number of true classes among the `top` highest scores; equal scores rank in the order of the classes.

    A class with a score of -inf is never counted.
    """
    scores, ranked = scores_BC.sort(dim=1, descending=True, stable=True)
    is_right = (ranked[:, :top] == codes_B[:, None]) & ~scores[:, :top].isneginf()
    return int(is_right.any(dim=1).sum())


def add_to_confusion(confusion_CC: NDArray[np.int64], true: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
    """Count (true, predicted) pairs into the matrix, rows true, columns predicted."""
    np.add.at(confusion_CC, (true, predicted), 1)


def class_table(confusion_CC: NDArray[np.int64], classes: Sequence[str]) -> list[ClassScore]:
    """Recall, precision and the most common error of each class, in the order of the classes."""
    right, images, taken = np.diag(confusion_CC), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    table = []
    for code, name in enumerate(classes):
        mistakes = confusion_CC[code].copy()
        mistakes[code] = 0
        worst = int(mistakes.argmax())
        table.append(
            ClassScore(
                name,
                int(images[code]),
                float(right[code] / images[code]) if images[code] else float("nan"),
                float(right[code] / taken[code]) if taken[code] else float("nan"),
                classes[worst] if mistakes[worst] else "",
            )
        )
    return table


def mean_recall(confusion_CC: NDArray[np.int64]) -> float:
    """Mean recall of the classes that have test images, 0..1, also called balanced or per-class accuracy."""
    images = confusion_CC.sum(axis=1)
    return float((np.diag(confusion_CC)[images > 0] / images[images > 0]).mean())


def table_text(table: Sequence[ClassScore]) -> str:
    """The table of classes for a terminal, the lowest recall first; of many classes, the first 100."""
    worst_first = sorted(table, key=lambda line: (np.nan_to_num(line.recall, nan=2.0), line.name))
    shown = worst_first[:MAX_LINES]
    width = max(len("class"), *(len(line.name) for line in shown))
    lines = [f"{'class':{width}}  images  recall  precision  mistaken for"]
    for line in shown:
        recall, precision = (f"{value:.1%}" if value == value else "-" for value in (line.recall, line.precision))
        lines.append(f"{line.name:{width}}  {line.images:6,}  {recall:>6}  {precision:>9}  {line.mistaken_for}".rstrip())
    if len(shown) < len(table):
        lines.append(f"... {len(table) - len(shown):,} more classes with the same recall or better; `--json` has them all")
    return "\n".join(lines)


def printable(confusion_CC: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The confusion matrix for JSON, or None for more than `MAX_CLASSES` classes."""
    return confusion_CC if len(confusion_CC) <= MAX_CLASSES else None
