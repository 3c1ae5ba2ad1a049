"""The confusion matrix of a classifier, drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.probes.scores import MAX_CLASSES
from dino_extract.errors import ConfigError
from dino_extract.files import check_target, replace_atomically
from dino_extract.names import printable
from dino_extract.pictures.captions import in_ascii

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELLED_CLASSES = 90  # more names do not fit next to the matrix
_NUMBERED_CLASSES = 20  # with more, colours alone say how many images there are
_NAME_CHARS = 30  # longer names lose their middle
_FONT = "DejaVu Sans"  # comes with matplotlib
_CHAR_INCHES = 0.09  # about the width of a letter of matplotlib's font at 10 points


def check_confusion_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Check before the work that `draw_confusion` can write there.

    Raises:
        ConfigError: as `draw_confusion`.
    """
    check_target(path, "picture", overwrite=overwrite)
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


def draw_confusion(
    confusion_CC: NDArray[np.int64], classes: Sequence[str], path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Draw the confusion matrix: a row for each true class, coloured by the share of its images.

    Of more than `MAX_CLASSES` classes, those with the most images are drawn, and a title says so.

    Raises:
        ConfigError: matplotlib is not installed, or the picture exists or cannot be written.
    """
    check_confusion_target(path, overwrite=overwrite)
    figure_of_size = _figure_class()
    images, all_classes = confusion_CC.sum(axis=1), len(classes)
    if all_classes > MAX_CLASSES:
        drawn = np.sort(np.argsort(-images, kind="stable")[:MAX_CLASSES])
        confusion_CC, classes, images = confusion_CC[np.ix_(drawn, drawn)], [classes[code] for code in drawn.tolist()], images[drawn]
    share = confusion_CC / np.maximum(images, 1)[:, None]
    num_classes = len(classes)
    is_numbered = num_classes <= _NUMBERED_CLASSES
    step = -(-num_classes // _LABELLED_CLASSES)
    names = _in_letters_of_matplotlib([_shortened(name) for name in classes[::step]])
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
        set_ticks(range(0, num_classes, step), names, rotation=rotation, fontsize=font_size, parse_math=False, family=_FONT)
    if is_numbered:
        _write_counts(axes, confusion_CC, share)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    with replace_atomically(path, "picture", overwrite=overwrite, also=(ValueError,)) as draft:
        figure.savefig(draft, dpi=150, format=os.path.splitext(path)[1][1:] or "png")  # without a format, matplotlib adds a suffix


def _write_counts(axes: Axes, confusion_CC: NDArray[np.int64], share_CC: NDArray[np.float64]) -> None:
    """Write the number of images into each cell that has any."""
    for row, column in np.argwhere(confusion_CC > 0).tolist():
        colour = "white" if share_CC[row, column] > 0.5 else "black"
        axes.text(column, row, f"{confusion_CC[row, column]}", ha="center", va="center", color=colour, fontsize=8)


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME_CHARS else f"{name[: _NAME_CHARS // 2 - 2]}...{name[1 - _NAME_CHARS // 2 :]}"


def _in_letters_of_matplotlib(names: list[str]) -> list[str]:
    """The names with every character that the font of matplotlib lacks in ASCII."""
    from matplotlib import font_manager  # as above

    font = font_manager.get_font(font_manager.findfont(_FONT))
    return ["".join(char if font.get_char_index(ord(char)) else in_ascii(char) for char in name) for name in names]
