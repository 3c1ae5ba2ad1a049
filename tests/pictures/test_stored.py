"""Names of pictures."""

from __future__ import annotations

import os

from dino_extract.names import file_stem


def test_names_of_any_script_fit_a_file_system() -> None:
    """A long path of letters that take four bytes gives a name with room for a number and a suffix in 255 bytes."""
    assert len(os.fsencode(file_stem("\U00020000" * 300 + "/a.jpg"))) <= 255 - len("1000000_.png")
