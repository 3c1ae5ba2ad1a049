"""Rows with vectors as a table of pyarrow or pandas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dino_extract.results import optional_package
from dino_extract.store.selection import Rows

Columns = Mapping[str, Any]


def arrow_table(columns: Columns, vectors: Mapping[str, Rows]) -> Any:
    """A `pyarrow.Table` of some columns, and of a list of fixed size for each dataset with one vector per row.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    pyarrow = optional_package("pyarrow", "to_arrow")
    lists = {}
    for name, rows in vectors.items():
        values = rows[:]
        lists[name] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])
    return pyarrow.table({**columns, **lists})


def data_frame(columns: Columns, vectors: Mapping[str, Rows]) -> Any:
    """A `pandas.DataFrame` of some columns, and of one array per row for each dataset with one vector per row.

    Raises:
        ConfigError: pandas is not installed.
    """
    pandas = optional_package("pandas", "to_dataframe")
    return pandas.DataFrame({**columns, **{name: list(rows[:]) for name, rows in vectors.items()}})
