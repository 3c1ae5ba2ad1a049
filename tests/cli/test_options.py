"""Options that several commands share."""

from __future__ import annotations

import pytest
import typer

from dino_extract.cli.options import count_or_auto


@pytest.mark.parametrize(("text", "count"), [("auto", 0), ("0", 0), (0, 0), ("8", 8), ("007", 7)])
def test_a_count_may_be_auto(text: str | int, count: int) -> None:
    """`auto` is 0, as the library spells it. A number is itself."""
    assert count_or_auto(text) == count


@pytest.mark.parametrize("text", ["-3", "1.5", "x", "", "AUTO", "٣", "1e3"])
def test_anything_else_is_wrong_usage(text: str) -> None:
    """The error says what was expected and what came."""
    with pytest.raises(typer.BadParameter, match=r"must be a whole number or `auto`, got"):
        count_or_auto(text)
