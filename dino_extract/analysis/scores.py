"""How well predicted classes agree with true ones: accuracy, a table per class, and the confusion picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.captions import in_ascii, system_font
from dino_extract.analysis.pictures import display_name
from dino_extract.analysis.tables import write_table
from dino_extract.analysis.writing import require_place, writing
from dino_extract.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 1000  # of a confusion matrix that is drawn or printed; of more, a class is less than two dots, and the numbers are megabytes
MAX_LINES = 100  # of the table per class
_LABELLED_CLASSES = 90  # more names do not fit beside the picture
_NUMBERED_CLASSES = 20  # with more, colours alone say how many images there are
_NAME_CHARS = 30  # longer names lose their middle
_CHAR_INCHES = 0.09  # about the width of a letter of matplotlib's font at 10 points


@dataclass(frozen=True)
class ClassScore:
    """One line of the per-class table.

    Args:
        name: the class.
        images: test images of it.
        recall: share of them that were recognised; NaN if there are none.
        precision: share of right ones among the images taken for it; NaN if there are none.
        mistaken_for: the class it is most often taken for wrongly, "" if never.
    """

    name: str
    images: int
    recall: float
    precision: float
    mistaken_for: str


class Answers(NamedTuple):
    """What each test image was taken for; with several draws, in the last of them.

    Args:
        rows: (n,) int64 position of the image among the embedded ones of the file that was tested.
        true: (n,) int64 its class.
        predicted: (n,) int64 the class it was taken for.
        share: (n,) float32, 0..1 of the votes, or of the probability, that this class has.
    """

    rows: NDArray[np.int64]
    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    share: NDArray[np.float32]


def write_answers(answers: Answers, paths: Sequence[str], classes: Sequence[str], output: str | os.PathLike[str]) -> None:
    """Write path, label, predicted and share of each image as CSV: first the surest mistakes, among them labels that are wrong.

    Args:
        answers: of a test.
        paths: of all embedded images of the file that was tested.
        classes: names.
        output: the file.

    Raises:
        ConfigError: it cannot be written.
    """
    is_wrong = answers.predicted != answers.true
    order = np.argsort(np.where(is_wrong, -answers.share, answers.share + 1), kind="stable")
    rows, true, predicted, share = (column[order].tolist() for column in answers)
    columns = {"label": [classes[code] for code in true], "predicted": [classes[code] for code in predicted]}
    write_table(output, [paths[row] for row in rows], {**columns, "share": [round(value, 4) for value in share]})


def top_accuracy(scores_BC: Tensor, codes_B: Tensor, top: int) -> int:
    """How many of the true classes are among the `top` highest scores; equal scores rank in the order of the classes.

    A score of -inf means that the class is no answer, however few others there are.
    """
    scores, ranked = scores_BC.sort(dim=1, descending=True, stable=True)
    is_right = (ranked[:, :top] == codes_B[:, None]) & ~scores[:, :top].isneginf()
    return int(is_right.any(dim=1).sum())


def add_to_confusion(confusion_CC: NDArray[np.int64], true: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
    """Count (true, predicted) pairs into the matrix, rows true, columns predicted."""
    np.add.at(confusion_CC, (true, predicted), 1)


def class_table(confusion_CC: NDArray[np.int64], classes: Sequence[str]) -> list[ClassScore]:
    """Recall, precision and the commonest mistake of each class, in the order of the classes."""
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
    """Mean recall of the classes that have test images, 0..1: accuracy as if classes were of one size, called balanced or per class too."""
    images = confusion_CC.sum(axis=1)
    return float((np.diag(confusion_CC)[images > 0] / images[images > 0]).mean())


def table_text(table: Sequence[ClassScore]) -> str:
    """The per-class table for a terminal, the worst recognised class first; of very many classes, the worst ones."""
    worst_first = sorted(table, key=lambda line: (np.nan_to_num(line.recall, nan=2.0), line.name))
    shown = worst_first[:MAX_LINES]
    width = max(len("class"), *(len(line.name) for line in shown))
    lines = [f"{'class':{width}}  images  recall  precision  mistaken for"]
    for line in shown:
        recall, precision = (f"{value:.1%}" if value == value else "-" for value in (line.recall, line.precision))
        lines.append(f"{line.name:{width}}  {line.images:6,}  {recall:>6}  {precision:>9}  {line.mistaken_for}".rstrip())
    if len(shown) < len(table):
        lines.append(f"... {len(table) - len(shown):,} more classes, recognised as well or better; `--json` has them all")
    return "\n".join(lines)


def printable(confusion_CC: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The confusion matrix for a machine to read; None, which is null in JSON, of more than `MAX_CLASSES` classes."""
    return confusion_CC if len(confusion_CC) <= MAX_CLASSES else None


def require_confusion_place(path: str | os.PathLike[str] | None) -> None:
    """Check before the work that the confusion matrix can be drawn there; None asks for nothing.

    Raises:
        ConfigError: as `draw_confusion`.
    """
    if path is None:
        return
    require_place(path, "picture")
    known, suffix = _figure_class()().canvas.get_supported_filetypes(), os.path.splitext(path)[1][1:]
    if suffix and suffix.lower() not in known:
        message = f"picture `{os.fspath(path)}` cannot be written: matplotlib writes no `.{suffix}`"
        raise ConfigError(message, hint=f"one of {', '.join(f'`.{each}`' for each in sorted(known))}")


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure  # takes a second, and only this picture needs it
    except ImportError as error:
        raise ConfigError("the confusion picture needs matplotlib", hint="pip install 'dino-extract[analysis]'") from error
    return Figure


def draw_confusion(confusion_CC: NDArray[np.int64], classes: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Write the confusion matrix as a picture: a row per true class, coloured by the share of its images.

    Of more than `MAX_CLASSES` classes those with the most images are drawn, and a title says so.

    Raises:
        ConfigError: matplotlib is not installed, or the picture cannot be written.
    """
    figure_of_size = _figure_class()
    images, all_classes = confusion_CC.sum(axis=1), len(classes)
    if all_classes > MAX_CLASSES:
        drawn = np.sort(np.argsort(-images, kind="stable")[:MAX_CLASSES])
        confusion_CC, classes, images = confusion_CC[np.ix_(drawn, drawn)], [classes[code] for code in drawn.tolist()], images[drawn]
    share = confusion_CC / np.maximum(images, 1)[:, None]
    num_classes = len(classes)
    is_numbered = num_classes <= _NUMBERED_CLASSES
    step = -(-num_classes // _LABELLED_CLASSES)
    names, fonts = _drawable([_shortened(name) for name in classes[::step]])
    cell = max(0.3, 0.8 * _CHAR_INCHES * (len(str(confusion_CC.max())) + 1)) if is_numbered else 0.3  # inches
    side = min(max(2.5, cell * num_classes), 14.0)
    margin = _CHAR_INCHES * max(map(len, names)) + 0.5
    figure = figure_of_size(figsize=(margin + side + 1.2, side + margin), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num_classes < all_classes:
        axes.set_title(f"the {num_classes:,} of {all_classes:,} classes with the most test images")
    font_size = 10 if num_classes <= 40 else 8
    for set_ticks, rotation in ((axes.set_xticks, 90), (axes.set_yticks, 0)):
        set_ticks(
            range(0, num_classes, step), names, rotation=rotation, fontsize=font_size, parse_math=False, family=fonts
        )  # a dollar is a dollar
    if is_numbered:
        for row, column in np.argwhere(confusion_CC > 0).tolist():
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{confusion_CC[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    with writing(path, "picture", also=ValueError):
        figure.savefig(path, dpi=150, format=os.path.splitext(path)[1][1:] or "png")  # without a format, matplotlib adds a suffix


def _shortened(name: str) -> str:
    name = display_name(name)
    return name if len(name) <= _NAME_CHARS else f"{name[: _NAME_CHARS // 2 - 2]}...{name[1 - _NAME_CHARS // 2 :]}"


def _drawable(names: list[str]) -> tuple[list[str], list[str]]:
    """The names as matplotlib can write them, and the families of fonts that it takes: its own, and what the machine has for the rest."""
    from matplotlib import font_manager  # as above

    families = ["DejaVu Sans"]
    own = font_manager.get_font(font_manager.findfont(families[0]))
    shown = {char: char for char in set("".join(names))}
    for char in sorted(shown):
        if own.get_char_index(ord(char)):
            continue
        if font := system_font(char):
            font_manager.fontManager.addfont(font.path)
            families.append(font_manager.FontProperties(fname=font.path).get_name())
        else:
            shown[char] = in_ascii(char)
    return ["".join(shown[char] for char in name) for name in names], list(dict.fromkeys(families))
