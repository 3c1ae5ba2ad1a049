"""CSV tables with a row for each image."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dino_extract.files import replace_atomically

_FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # with their double-byte forms, which Japanese spreadsheets read in the same way


def write_table(
    output: str | os.PathLike[str], paths: Sequence[str], columns: Mapping[str, Sequence[Any]], *, overwrite: bool = False
) -> None:
    """Write a CSV file with the path and the other values of each image.

    Args:
        output: the file.
        paths: (n,) stored paths, written as `table_path`.
        columns: names of the other columns and their (n,) values.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the file cannot be written, or exists.
    """
    with (
        replace_atomically(output, "table", overwrite=overwrite) as partial,
        open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["path", *columns])
        writer.writerows(zip(map(table_path, paths), *columns.values(), strict=True))


def table_path(path: str) -> str:
    """A path for a table: with `./` in front where a spreadsheet would run it as a formula. It still names the same file.

    The usual remedy, an apostrophe in front (OWASP, "CSV Injection"), would name another file.

    >>> table_path("=1+2.jpg"), table_path("cats/a.jpg")
    ('./=1+2.jpg', 'cats/a.jpg')
    """
    return f"./{path}" if path.lstrip().startswith(_FORMULA_STARTS) or path.startswith(("\t", "\r", "\n")) else path


def quoted_path(path: str) -> str:
    """A path as a CSV cell, always in quotes: a spreadsheet that splits at semicolons must not find a formula inside a path."""
    return '"' + table_path(path).replace('"', '""') + '"'
