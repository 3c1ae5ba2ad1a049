from __future__ import annotations

import os
import subprocess

import pytest

from dino_extract.names import quoted

NAMES = [
    b"a.h5",
    b"with space.h5",
    b"it's.h5",
    "café.h5".encode(),
    b"caf\xe9.h5",
    b"caf\xe97 it's \\n.h5",
    b"new\nline\t.h5",
    b"\x1b[31m.h5",
    b"",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_quoted_name_is_the_name_again_in_a_shell(name: bytes) -> None:
    """A name of any bytes comes back from bash as it is, and what is printed is text that a terminal shows and copies."""
    shown = quoted(os.fsdecode(name))

    assert shown.isprintable()
    assert subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True).stdout == name


def test_an_ordinary_name_is_not_quoted() -> None:
    """What needs no quotes has none."""
    assert quoted("runs/photos-1.h5") == "runs/photos-1.h5"
    assert quoted(os.fsdecode(b"caf\xe9.h5")) == r"$'caf\351.h5'"
