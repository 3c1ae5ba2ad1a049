"""What the results of public functions have in common: one line on a terminal, a small table in a notebook, JSON, and a data frame.

Example:
    @dataclass(frozen=True)
    class Found(Result):
        paths: tuple[str, ...]
        model: Any
        json_without = ("model",)

        def summary(self) -> str:
            return counted(len(self.paths), "image")

        def table(self) -> list[dict[str, Any]]:
            return [{"path": path} for path in self.paths]

    Found(("a.jpg",), None)            # Found(1 image)
    Found(("a.jpg",), None).to_dict()  # {"paths": ["a.jpg"]}, which `--json` prints
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from html import escape
from importlib import import_module
from math import isfinite
from os import PathLike, fspath
from typing import Any, ClassVar

from dino_extract.errors import ConfigError

HTML_ROWS = 10  # of the table in a notebook


class Result:
    """Base of the frozen dataclasses that public functions return.

    Attributes:
        json_without: names of fields that `to_dict` leaves out.
        json_with: names of properties that `to_dict` adds to the fields.
    """

    json_without: ClassVar[tuple[str, ...]] = ()
    json_with: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # `dataclass` keeps one that the class has, and replaces one it inherits

    def summary(self) -> str:
        """The result in a few words: counts and scores, never a whole list."""
        raise NotImplementedError

    def table(self) -> list[dict[str, Any]]:
        """The result as rows of values by column; without an own version, a single row of the plain fields."""
        return [{name: value for name, value in self.to_dict().items() if not isinstance(value, (list, dict))}]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()})"

    def _repr_html_(self) -> str:
        rows = self.table()
        names = list(rows[0]) if rows else []
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join(f"<tr>{''.join(f'<td>{_cell(row[name])}</td>' for name in names)}</tr>" for row in rows[:HTML_ROWS])
        more = f"<p>{len(rows) - HTML_ROWS:,} more rows, see <code>to_dataframe()</code></p>" if len(rows) > HTML_ROWS else ""
        return f"<p>{escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def to_dict(self) -> dict[str, Any]:
        """The result in the types of JSON, under the names of its fields: what `--json` prints."""
        return plain({name: getattr(self, name) for name in (*_names(self), *self.json_with) if name not in self.json_without})

    def to_dataframe(self) -> Any:
        """The result as a `pandas.DataFrame`, a row for each line of `table`.

        Raises:
            ConfigError: pandas is not installed.
        """
        return optional_package("pandas", "to_dataframe").DataFrame(self.table())


def optional_package(name: str, needed_by: str) -> Any:
    """Import a package that not everybody has.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"the package `{name}` is not installed, which `{needed_by}` needs", hint=f"pip install {name}") from error


def plain(value: Any) -> Any:
    """A value in the types of JSON: arrays become lists, results and other dataclasses dictionaries, NaN and infinity None."""
    value = _as_builtin(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _as_builtin(value: Any) -> Any:
    """A dictionary for an object with named values, a list or number for an array; anything else unchanged."""
    if isinstance(value, Result):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in _names(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, PathLike):
        return fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value  # arrays and numbers of numpy, tensors of torch


def shown(name: str, most: int = 60) -> str:
    """A path for `summary`, in quotes; a long one keeps its end."""
    return ascii(name if len(name) <= most else f"...{name[3 - most :]}")


def _names(value: Any) -> list[str]:
    return [entry.name for entry in fields(value)]


def _cell(value: Any) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
