"""The per-class table and the confusion picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_extract.analysis.probes.scores import class_table, mean_recall, table_text
from dino_extract.errors import ConfigError
from dino_extract.pictures.confusion import draw_confusion

CONFUSION = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])


def test_recall_and_precision_equal_scikit_learn() -> None:
    """The table agrees with scikit-learn's report on the same pairs."""
    metrics = pytest.importorskip("sklearn.metrics")
    true, predicted = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]

    table = class_table(CONFUSION, ["a", "b", "c"])

    precision, recall, _, images = metrics.precision_recall_fscore_support(true, predicted)
    assert [line.recall for line in table[:2]] == pytest.approx(recall)
    assert [line.precision for line in table[:2]] == pytest.approx(precision)
    assert [line.images for line in table[:2]] == images.tolist()


def test_mean_recall_is_scikit_learn_s_balanced_accuracy() -> None:
    """Every class counts alike, but one without test images does not count."""
    metrics = pytest.importorskip("sklearn.metrics")

    assert mean_recall(CONFUSION) == pytest.approx(metrics.balanced_accuracy_score([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]))


def test_a_class_without_test_images_is_shown_as_such() -> None:
    """Without an image there is no recall, and the line says so."""
    text = table_text(class_table(CONFUSION, ["a", "b", "c"]))

    assert text.splitlines()[1].split() == ["a", "4", "75.0%", "100.0%", "b"]
    assert text.splitlines()[-1].split() == ["c", "0", "-", "-"]


def test_the_confusion_picture_is_darkest_on_the_diagonal(tmp_path: Path) -> None:
    """A perfect classifier's picture is dark on the diagonal and white beside it."""
    pytest.importorskip("matplotlib")

    draw_confusion(np.eye(30, dtype=np.int64) * 5, [f"c{code}" for code in range(30)], tmp_path / "confusion.png")

    pixels = np.asarray(Image.open(tmp_path / "confusion.png").convert("L"))
    assert pixels.shape[0] > 500
    assert 0.005 < (pixels < 90).mean() < 0.1


def test_large_numbers_in_the_confusion_picture_do_not_touch(tmp_path: Path) -> None:
    """Between any two of twenty numbers of five digits there is more room than between digits."""
    pytest.importorskip("matplotlib")

    draw_confusion(np.full((20, 20), 88888), ["a"] * 20, tmp_path / "confusion.png")

    is_dark = np.asarray(Image.open(tmp_path / "confusion.png").convert("L")) < 120
    left, right = np.flatnonzero(is_dark.mean(axis=0) > 0.5)[[0, -1]]  # the frame of the matrix
    inner = is_dark[:, left + 5 : right - 5]
    top = np.flatnonzero(inner.mean(axis=1) > 0.9)[0]
    columns = np.flatnonzero(inner[top + 5 : top + 60].any(axis=0))  # of the first row of numbers
    assert (np.diff(columns) > 8).sum() == 19


def test_names_of_classes_are_shown_as_they_are(tmp_path: Path) -> None:
    """Dollars are no formula, and bytes that are not UTF-8 no error."""
    pytest.importorskip("matplotlib")

    draw_confusion(CONFUSION, ["$\\frac$", "over 10 $", "\udcff" * 50], tmp_path / "confusion.png")

    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A missing folder gives one sentence."""
    pytest.importorskip("matplotlib")

    with pytest.raises(ConfigError, match=r"picture `.*none/x.png` cannot be written"):
        draw_confusion(CONFUSION, ["a", "b", "c"], tmp_path / "none" / "x.png")


def test_of_very_many_classes_the_worst_are_listed_and_the_rest_counted() -> None:
    """Of 150 classes the table has the hundred that are recognised worst, and says how many are left."""
    confusion = np.diag(np.arange(150))
    confusion[:, 0] += 10

    lines = table_text(class_table(confusion, [f"c{code:03}" for code in range(150)])).splitlines()

    assert [line.split()[0] for line in lines[1:4]] == ["c001", "c002", "c003"]
    assert len(lines) == 102
    assert lines[-1].startswith("... 50 more classes")


def test_of_too_many_classes_those_with_the_most_images_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two of three classes the picture is that of the two with the most images, but for a title."""
    pytest.importorskip("matplotlib")
    confusion = np.array([[50, 0, 30], [1, 2, 3], [20, 0, 60]])
    monkeypatch.setattr("dino_extract.pictures.confusion.MAX_CLASSES", 2)

    draw_confusion(confusion, ["a", "b", "c"], tmp_path / "some.png")

    draw_confusion(np.array([[50, 30], [20, 60]]), ["a", "c"], tmp_path / "two.png")
    cells = []
    for name in ("some", "two"):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).reshape(-1, 3)
        colours, counts = np.unique(pixels[pixels.any(axis=1)], axis=0, return_counts=True)
        cells.append(colours[counts > 2000].tolist())
    assert cells[0] == cells[1]
    assert len(cells[0]) >= 5  # white, and a shade of blue for each cell


def test_names_of_any_script_are_drawn_without_a_warning(tmp_path: Path) -> None:
    """A name in letters that matplotlib's own font lacks is written in a font of the machine, or in numbers, and warns of nothing."""
    pytest.importorskip("matplotlib")

    draw_confusion(np.eye(3, dtype=np.int64), ["\u65e5\u672c", "caf\u00e9", "\U0001f600"], tmp_path / "confusion.png")

    assert (tmp_path / "confusion.png").stat().st_size > 1000
