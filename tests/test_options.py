"""A configuration class accepts what its type hints and limits say, and errors name the option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from dino_extract.errors import ConfigError
from dino_extract.options import Limits, Options, as_list, built, checked, option, require_option, require_with


@dataclass(frozen=True)
class Inner(Options):
    """A group of options."""

    rate: float = option(1.0, above=0)


@dataclass(frozen=True)
class Example(Options):
    """One option of each kind."""

    name: str = "x"
    folder: str | None = None
    seed: int | None = None
    batch: int = option(0, least=1, auto=0)
    by: Literal["sample", "cluster", "row"] = "sample"
    is_fast: bool = False
    size: str | None = option(None, between="x")
    sources: tuple[str, ...] = ()
    scale: tuple[float, float] = option((0.0, 1.0), least=0, most=1)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"folder": Path("a/b")}, "a/b"),
        ({"folder": None}, None),
        ({"seed": np.int64(3)}, 3),
        ({"batch": torch.tensor(8)}, 8),
        ({"batch": "auto"}, 0),
        ({"batch": 0}, 0),
        ({"by": "row"}, "row"),
        ({"is_fast": np.bool_(True)}, True),
        ({"size": (28, 42)}, "28x42"),
        ({"size": 28}, "28"),
        ({"sources": ["a", "b"]}, ("a", "b")),
        ({"sources": "a"}, ("a",)),
        ({"scale": np.array([0.5, 1])}, (0.5, 1.0)),
        ({"inner": {"rate": 2}}, Inner(2.0)),
    ],
)
def test_values_become_plain_values_of_the_hinted_type(given: dict[str, Any], kept: Any) -> None:
    """Numbers of numpy and torch, paths, lists and mappings become what the type hint says."""
    value = getattr(Example(**given), next(iter(given)))

    assert (value, type(value)) == (kept, type(kept))
    assert built(Example, given) == Example(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": 3}, "`name` must be text, got `3`"),
        ({"name": None}, "`name` must be text, got `None`"),
        ({"seed": True}, "`seed` must be a whole number, got `True`"),
        ({"seed": 2.0}, "`seed` must be a whole number, got `2.0`"),
        ({"batch": "x"}, "`batch` must be a whole number of at least 1 or `auto`, got `x`"),
        ({"batch": False}, "`batch` must be a whole number of at least 1 or `auto`, got `False`"),
        ({"batch": -1}, "`batch` must be a whole number of at least 1 or `auto`, got `-1`"),
        ({"by": "rows"}, "`by` must be `sample`, `cluster` or `row`, got `rows`"),
        ({"is_fast": 1}, "`is_fast` must be `True` or `False`, got `1`"),
        ({"sources": [1]}, "`sources` must be text, got `1`"),
        ({"scale": [0.5]}, "`scale` must be 2 numbers from 0 to 1, the smaller one first, got `[0.5]`"),
        ({"scale": [0.5, 0.1]}, "`scale` must be 2 numbers from 0 to 1, the smaller one first, got `[0.5, 0.1]`"),
        ({"scale": ["a", 1]}, "`scale` must be 2 numbers from 0 to 1, the smaller one first, got `['a', 1]`"),
        ({"scale": [0, float("nan")]}, "`scale` must be 2 numbers from 0 to 1, the smaller one first, got `[0, nan]`"),
        ({"inner": 3}, "`inner` must be a group of options, got `3`"),
        ({"inner": {"rate": 0}}, "`inner.rate` must be a number above 0, got `0`"),
        ({"inner": {"rate": float("inf")}}, "`inner.rate` must be a number above 0, got `inf`"),
        ({"inner": {"rat": 1}}, "`inner.rat` is not an option, did you mean `inner.rate`?"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    """The error names the option, says what it accepts, and shows the value."""
    with pytest.raises(ConfigError) as refused:
        Example(**given)

    assert refused.value.message == message


@pytest.mark.parametrize(("name", "meant"), [("sizes", ", did you mean `size`?"), ("zzz", "")])
def test_an_unknown_option_gets_the_nearest_name(name: str, meant: str) -> None:
    """A slip in the name of an option is answered with the name that was meant; the hint lists all names."""
    with pytest.raises(ConfigError) as refused:
        built(Example, {name: 1})

    assert refused.value.message == f"`{name}` is not an option{meant}"
    assert (refused.value.hint or "").startswith("the options are name, folder, seed, ")


def test_a_name_from_another_group_is_proposed() -> None:
    """The nearest name may be one that is not an option here."""
    with pytest.raises(ConfigError, match=r"did you mean `optim\.base_lr`"):
        require_option("base_lr", ["steps"], ["optim.base_lr"])


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("cls", ["cls"]),
        (5, [5]),
        (np.int64(5), [5]),
        ((5, 6), [5, 6]),
        (np.array(["a", "b"]), ["a", "b"]),
        (torch.tensor([1, 2]), [1, 2]),
        ((), []),
    ],
)
def test_one_item_is_a_list_of_one(value: object, items: list[object]) -> None:
    """A text is not split into letters, and a single number needs no brackets."""
    assert as_list(value) == items


@pytest.mark.parametrize("value", [2.0, 0, "3", None])
def test_an_argument_of_a_function_is_checked_in_the_same_way(value: object) -> None:
    """A function checks one argument against a type and limits."""
    with pytest.raises(ConfigError, match=f"`top` must be a whole number of at least 1, got `{value}`"):
        checked("top", int, value, Limits(least=1))


def test_an_option_about_another_one_needs_it() -> None:
    """An option that would be ignored is refused."""
    with pytest.raises(ConfigError, match="`test_labels` needs `test`, which is not given"):
        require_with("test_labels", "labels.csv", "test", None)

    require_with("test_labels", None, "test", None)
    require_with("test_labels", "labels.csv", "test", "test.h5")
