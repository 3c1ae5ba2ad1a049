"""One checker of option values: what a configuration class accepts follows from its type hints and from `option(...)`.

Example:
    @dataclass(frozen=True)
    class Config(Options):
        by: Literal["sample", "cluster"] = "sample"
        top: int = option(10, least=1)

    Config(top=0)  # ConfigError: `top` must be a whole number of at least 1, got `0`
    built(Config, {"to": 3})  # ConfigError: `to` is not an option, did you mean `top`?
    checked("top", int, numpy.int64(3), Limits(least=1))  # 3, for an argument of a function
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dino_extract.errors import ConfigError

Config = TypeVar("Config")

_KINDS = {str: "text", bool: "`True` or `False`", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Limits:
    """Which values of its type an option accepts.

    Args:
        least: smallest number.
        above: number that the value must exceed.
        most: largest number.
        auto: number that stands for `auto`, which is accepted too.
        between: text put between several values, which are kept as one text.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    auto: int | None = None
    between: str | None = None

    def allow(self, number: Any) -> bool:
        """Whether a number is within the limits; NaN never is."""
        is_low = (self.least is not None and not number >= self.least) or (self.above is not None and not number > self.above)
        return not is_low and (self.most is None or number <= self.most)

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f" from {self.least} to {self.most}"
        words = {"of at least": self.least, "above": self.above, "of at most": self.most}
        return "".join(f" {word} {bound}" for word, bound in words.items() if bound is not None)


def option(default: Any, **limits: Any) -> Any:
    """A field of a configuration class with the `Limits` of its values."""
    return field(default=default, metadata={"limits": Limits(**limits)})


class Options:
    """Base of configuration classes: the values of a new object are checked and become plain Python values."""

    def __post_init__(self) -> None:
        for name, (hint, limits) in _fields(type(self)).items():  # type: ignore[arg-type]
            object.__setattr__(self, name, checked(name, hint, getattr(self, name), limits))


def built(cls: type[Config], values: Mapping[str, Any], prefix: str = "") -> Config:
    """An object of a configuration class from values by name; errors show each name behind `prefix`.

    Raises:
        ConfigError: a name is unknown, or a value is not accepted.
    """
    return cls(**checked_values(cls, values, prefix))


def checked_values(cls: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of some or all fields of a dataclass, checked and as plain Python values.

    Raises:
        ConfigError: a name is unknown, or a value is not accepted.
    """
    known = _fields(cls)
    for name in values:
        require_option(prefix + name, [prefix + each for each in known])
    return {name: checked(prefix + name, known[name][0], value, known[name][1]) for name, value in values.items()}


def require_option(name: str, known: Iterable[str], others: Iterable[str] = ()) -> None:
    """Check the name of an option; `others` are names elsewhere that may have been meant.

    Raises:
        ConfigError: with the nearest name.
    """
    known = list(known)
    if name not in known:
        close = get_close_matches(name, [*known, *others], n=1)
        meant = f", did you mean `{close[0]}`?" if close else ""
        raise ConfigError(f"`{name}` is not an option{meant}", hint=f"the options are {', '.join(known)}")


def require_with(name: str, value: object, other: str, given: object) -> None:
    """Check that an option which is about another one is given with it.

    Raises:
        ConfigError: it would be ignored.
    """
    if value is not None and given is None:
        raise ConfigError(f"`{name}` needs `{other}`, which is not given")


def checked(name: str, hint: Any, value: Any, limits: Limits = Limits()) -> Any:
    """A value as a plain Python value of the hinted type: from numbers of numpy and torch, paths, and lists for tuples.

    Args:
        name: of the option, for the error.
        hint: str, bool, int, float, `Literal`, tuple, a dataclass, or one of them `| None`.
        value: what the user gave.
        limits: which values of that type are accepted.

    Raises:
        ConfigError: the value has another type, or is outside its limits.
    """
    if get_origin(hint) in (UnionType, Union):
        if value is None:
            return None
        (hint,) = (choice for choice in get_args(hint) if choice is not NoneType)
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()  # numbers and arrays of numpy and torch, which this module does not load
    if limits.auto is not None and (value == "auto" or (value == limits.auto and not isinstance(value, bool))):
        return limits.auto
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return built(hint, value, f"{name}.")
    if get_origin(hint) is tuple:
        return _checked_tuple(name, get_args(hint), value, limits)
    if limits.between is not None and value is not None:
        value = limits.between.join(map(str, as_list(value)))
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not (_is_a(hint, value) and limits.allow(value)):
        raise _refusal(name, f"{_kind(hint)}{limits}{'' if limits.auto is None else ' or `auto`'}", value)
    return float(value) if hint is float else value


def as_list(value: Any) -> list[Any]:
    """The items of a list; one text or number is one item, and arrays and tensors become plain numbers or texts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]


def _checked_tuple(name: str, hints: tuple[Any, ...], value: Any, limits: Limits) -> tuple[Any, ...]:
    items = as_list(value)
    if hints[-1] is Ellipsis:
        return tuple(checked(name, hints[0], item, limits) for item in items)
    # The tuples of a fixed length are ranges: two numbers, from one to the other.
    if len(items) != len(hints) or not all(_is_a(float, item) and limits.allow(item) for item in items) or items != sorted(items):
        raise _refusal(name, f"{len(hints)} numbers{limits}, the smaller one first", value)
    return tuple(map(float, items))


def _is_a(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max  # false for NaN
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        *first, last = (f"`{choice}`" for choice in get_args(hint))
        return f"{', '.join(first)} or {last}"
    return _KINDS.get(hint, "a group of options")


def _refusal(name: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"`{name}` must be {expected}, got `{value}`")


@cache
def _fields(cls: type) -> dict[str, tuple[Any, Limits]]:
    hints = get_type_hints(cls)
    return {entry.name: (hints[entry.name], entry.metadata.get("limits", Limits())) for entry in fields(cls)}
