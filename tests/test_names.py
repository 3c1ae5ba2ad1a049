"""Names of files, shown, stored and quoted."""

from __future__ import annotations

import doctest
import os
import subprocess
from types import FunctionType

import pytest

from dino_extract import names
from dino_extract.names import file_stem, path_as_text, path_from_text, printable, quoted

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


def test_examples_in_docstrings_hold() -> None:
    """Every public function has an example, and every example is true."""
    examples = {test.name.rsplit(".", 1)[-1]: len(test.examples) for test in doctest.DocTestFinder().find(names)}

    assert all(examples[name] for name, each in vars(names).items() if isinstance(each, FunctionType) and not name.startswith("_"))
    assert doctest.testmod(names).failed == 0


def test_control_characters_are_escaped_for_terminals() -> None:
    """Escape sequences, newlines and bytes that are not UTF-8 are shown harmless, in bytes and in text."""
    name = b"a\x1b[31m\n\xff\xc3\xa9.jpg"

    assert printable(name) == printable(os.fsdecode(name)) == "a\\x1b[31m\\n\\xff\u00e9.jpg"
    assert printable(os.fsdecode(name), raw_bytes=True) == "a\\x1b[31m\\n\udcff\u00e9.jpg"


@pytest.mark.parametrize("name", [b"w\xff\xe9", "caf\u00e9".encode(), b"a\\xff", b"back\\slash\\x5c"])
def test_any_path_survives_as_text(name: bytes) -> None:
    """A path that is not UTF-8, or looks like an escape, is read back from its text."""
    text = path_as_text(b"/photos/" + name)

    assert path_from_text(text.encode().decode()) == b"/photos/" + name


def test_an_ordinary_path_is_its_own_text() -> None:
    """A plain path is stored as it is."""
    assert path_as_text(b"/photos/a b") == "/photos/a b"


@pytest.mark.parametrize("name", NAMES)
def test_bash_reads_a_quoted_name_as_the_name(name: bytes) -> None:
    """Bash reads a quoted name of any bytes as that name, and a terminal can show and copy it."""
    shown = quoted(os.fsdecode(name))

    assert shown.isprintable()
    assert subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True).stdout == name


def test_an_ordinary_name_is_not_quoted() -> None:
    """A name without special characters gets no quotes."""
    assert quoted("runs/photos-1.h5") == "runs/photos-1.h5"
    assert quoted(os.fsdecode(b"caf\xe9.h5")) == r"$'caf\351.h5'"


def test_a_file_stem_of_any_script_fits_a_file_system() -> None:
    """A long path of letters that take four bytes gives a name with room for a number and a suffix in 255 bytes."""
    assert len(os.fsencode(file_stem("\U00020000" * 300 + "/a.jpg"))) <= 255 - len("1000000_.png")
