"""Results of public functions: one line on a terminal, a table in a notebook, JSON, and a data frame."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import dino_extract as dx
from dino_extract.errors import ConfigError
from dino_extract.results import HTML_ROWS, Result, plain
from tests.analysis.stores import blobs, keys_of, write_store


class Point(NamedTuple):
    """A row of `Found`."""

    name: str
    score: float


@dataclass(frozen=True)
class Found(Result):
    """A result with everything that JSON lacks."""

    points: tuple[Point, ...]
    matrix: np.ndarray
    secret: object = None
    json_without = ("secret",)
    json_with = ("count",)

    @property
    def count(self) -> int:
        """Number of points."""
        return len(self.points)

    def summary(self) -> str:
        """Number of points."""
        return f"{self.count} points"

    def table(self) -> list[dict[str, Any]]:
        """A row for each point."""
        return [point._asdict() for point in self.points]


FOUND = Found((Point("<b>", float("nan")), Point("a", 0.5)), np.eye(2, dtype=np.float32), object())


def test_a_result_is_one_line() -> None:
    """`repr` is the name of the class and the summary, not the fields."""
    assert repr(FOUND) == "Found(2 points)"


def test_json_has_the_fields_under_their_names() -> None:
    """Named tuples become dictionaries, arrays become lists, NaN becomes null; named fields are left out, named properties are added."""
    assert FOUND.to_dict() == {
        "points": [{"name": "<b>", "score": None}, {"name": "a", "score": 0.5}],
        "matrix": [[1.0, 0.0], [0.0, 1.0]],
        "count": 2,
    }
    assert json.loads(json.dumps(plain([FOUND]), allow_nan=False)) == [FOUND.to_dict()]


def test_the_table_of_a_notebook_is_escaped() -> None:
    """A path cannot bring its own HTML."""
    html = FOUND._repr_html_()

    assert "<b>" not in html
    assert "<th>name</th><th>score</th>" in html
    assert "<td>&lt;b&gt;</td>" in html


def test_the_table_of_a_notebook_is_short() -> None:
    """Of many rows the first ten are shown."""
    html = Found((Point("a", 0.5),) * 800, np.eye(2))._repr_html_()

    assert html.count("<tr>") == HTML_ROWS + 1
    assert "790 more rows" in html


def test_a_data_frame_has_a_row_for_each_line() -> None:
    """Columns are those of the table."""
    pytest.importorskip("pandas")

    frame = FOUND.to_dataframe()

    assert frame.columns.tolist() == ["name", "score"]
    assert frame.name.tolist() == ["<b>", "a"]


def test_without_pandas_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is the line to type."""
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(ConfigError, match="`pandas` is not installed") as caught:
        FOUND.to_dataframe()

    assert caught.value.hint == "pip install pandas"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store of 40 images in four folders; the last two images are the same."""
    vectors, labels = blobs(4, 10, 16)
    vectors[-1] = vectors[-2]
    return write_store(tmp_path / "x.h5", keys_of(labels), {"features": vectors})


@pytest.mark.parametrize(
    ("function", "start", "rows"),
    [
        (lambda path: dx.knn(path, k=(1, 5)), "KnnResult(40 images, top-1 100.0% at k=1)", 2),
        (lambda path: dx.linear(path), "LinearResult(8 images, top-1 100.0%, logistic on cls)", 1),
        (lambda path: dx.linear(path).probe, "Probe(4 classes of features)", 4),
        (lambda path: dx.classify(dx.linear(path).probe, path)[0], "Classified('class000/00000.jpg', class000 ", 1),
        (lambda path: dx.dedup(path, threshold=0.999), "DedupResult(40 images, 1 groups, 1 to drop at 0.999)", 1),
        (lambda path: dx.search(path, paths="class000/00000.jpg", top=3)[0], "SearchResult('class000/00000.jpg', 3 hits, best ", 3),
        (lambda path: dx.outliers(path), "Outliers(40 images, ", 40),
        (lambda path: dx.cluster(path, 4, coarser=2), "Clustering(40 images in 4, 2 clusters)", 40),
        (lambda path: dx.cluster(path, 4)[0], "Clusters(40 vectors in 4 clusters)", 4),
        (lambda path: dx.curate(path, 8), "Curated(8 of 40 images)", 8),
    ],
)
def test_results_of_the_analyses(path: str, function: Any, start: str, rows: int) -> None:
    """Each is one short line, a table with equal columns in every row, and JSON without NaN."""
    found = function(path)

    assert repr(found).startswith(start)
    assert len(repr(found)) < 120
    table = found.table()
    assert len(table) == rows
    assert len({tuple(row) for row in table}) == 1
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
