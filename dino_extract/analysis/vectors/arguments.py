"""Arguments from Python, where no command line has checked them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, get_args

from dino_extract.errors import ConfigError


def several(value: Any) -> list[Any]:
    """What a list was asked for; a single text or number is one item, and arrays and tensors become plain numbers or texts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]


def require_choice(option: str, value: object, choices: Any) -> None:
    """Check a value against a `Literal`.

    Raises:
        ConfigError: it is none of them.
    """
    known = get_args(choices)
    if value not in known:
        raise ConfigError(f"`--{option}` takes {', '.join(known[:-1])} or {known[-1]}, got `{value}`")


def require_test_file(option: str, value: object, test: object) -> None:
    """Check that what is said about a test file is not said of none.

    Raises:
        ConfigError: it would be ignored.
    """
    if value is not None and test is None:
        raise ConfigError(f"`--{option}` is about a test file, but none is given")


def at_least_one(option: str, value: Any) -> int:
    """A number of things, from 1.

    Raises:
        ConfigError: less, or no whole number.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"`--{option}` takes a whole number, got `{value}`") from None
    if number < 1:
        raise ConfigError(f"`--{option}` must be at least 1, got {number}")
    return number
