"""CSV tables are read back as they were written, whatever the paths are."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from dino_extract.analysis.tables import table_path, write_table


def test_a_table_is_read_back(tmp_path: Path) -> None:
    """Paths with quotes, line breaks and bytes that are not UTF-8 come back, numbers as numbers; formulas have `./` in front."""
    paths = ['a"b,c.jpg', "new\nline.jpg", os.fsdecode(b"caf\xe9.jpg"), "=1+2.jpg"]

    write_table(tmp_path / "x.csv", paths, {"cluster": [0, 1, 2, 3], "label": ["x", "=y", "", "z"]})

    with open(tmp_path / "x.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *lines = csv.reader(file, quoting=csv.QUOTE_NONNUMERIC)
    assert header == ["path", "cluster", "label"]
    assert lines == [
        [table_path(path), number, label] for number, (path, label) in enumerate(zip(paths, ["x", "=y", "", "z"], strict=True))
    ]
    assert os.listdir(tmp_path) == ["x.csv"]
