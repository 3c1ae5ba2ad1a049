"""The embedded images of a file as a table of pyarrow or pandas, and as a few lines of HTML for a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_extract.names import printable
from dino_extract.results import optional_package
from dino_extract.store.selection import Rows

if TYPE_CHECKING:
    from dino_extract.store.reader import Store


def arrow_table(store: Store) -> Any:
    """A `pyarrow.Table`: path, height, width, and a list of fixed size for every dataset with one vector per image.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    pyarrow = optional_package("pyarrow", "to_arrow")
    columns = _columns(store)
    for name, rows in _vectors(store).items():
        values = rows[:]
        columns[name] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])
    return pyarrow.table(columns)


def data_frame(store: Store) -> Any:
    """A `pandas.DataFrame`: path, height, width, and one array for each image in every column of vectors.

    Raises:
        ConfigError: pandas is not installed.
    """
    return optional_package("pandas", "to_dataframe").DataFrame(
        {**_columns(store), **{name: list(rows[:]) for name, rows in _vectors(store).items()}}
    )


def html(store: Store) -> str:
    """The file in a notebook: its one line, and each dataset with its type and shape."""
    lines = [(name, f"{rows.dtype} {rows.shape}" if isinstance(rows := store[name], Rows) else "ragged") for name in store.names]
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(kind)}</td></tr>" for name, kind in lines)
    return f"<p>{escape(repr(store))}</p><table>{body}</table>"


def _columns(store: Store) -> dict[str, Any]:
    height, width = np.asarray(store.image_size).T
    return {"path": list(map(printable, store.paths)), "height": height, "width": width}


def _vectors(store: Store) -> dict[str, Rows]:
    return {name: rows for name in store.names if isinstance(rows := store[name], Rows) and rows.ndim == 2}
