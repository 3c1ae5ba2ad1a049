"""Tables of text with a line for each image."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dino_extract.analysis.writing import replacing

_FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # and their double-byte forms, which Japanese spreadsheets take for the same


def write_table(output: str | os.PathLike[str], paths: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> int:
    """Write images and what is known of each as CSV; how many paths have `./` in front (see `table_path`).

    Args:
        output: the file.
        paths: (n,) stored paths.
        columns: names of the other columns and their (n,) values.

    Raises:
        ConfigError: it cannot be written.
    """
    shown = [table_path(path) for path in paths]
    with replacing(output, "table") as partial, open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["path", *columns])
        writer.writerows(zip(shown, *columns.values(), strict=True))
    return sum(path != name for path, name in zip(paths, shown, strict=True))


def table_path(path: str) -> str:
    """A path for a table of text: where a spreadsheet would run it as a formula, with `./` in front, which names the same file.

    The usual remedy, an apostrophe (OWASP, "CSV Injection"), would name another file to everything that is not a spreadsheet.

    >>> table_path("=1+2.jpg"), table_path("cats/a.jpg")
    ('./=1+2.jpg', 'cats/a.jpg')
    """
    return f"./{path}" if path.lstrip().startswith(_FORMULA_STARTS) or path.startswith(("\t", "\r", "\n")) else path
