"""How paths are cleaned, recorded in a file, and shown to people."""

from __future__ import annotations

import os
import re
import shlex

_NAME_CHARS = 60  # of a path that go into a file name: up to four bytes each, of the 255 that common file systems allow


def clean_key(path: bytes) -> bytes:
    """The path without `.` parts and doubled slashes; `..` stays, because dropping it could change what a symlink points to.

    >>> clean_key(b"./a//b/./c.jpg")
    b'a/b/c.jpg'
    """
    root = b"/" if path.startswith(b"/") else b""
    return root + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))


def root_as_text(root: bytes) -> str:
    r"""A root as the text that a file records: bytes that are not UTF-8, and backslashes, as `\xff`; see `root_from_text`."""
    return root.replace(b"\\", rb"\x5c").decode("utf-8", "backslashreplace")


def root_from_text(text: str) -> bytes:
    """The root that `root_as_text` has written down."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())


def printable(path: bytes) -> str:
    """The path as text that is safe on a terminal: control characters and bytes that are not UTF-8 are escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quoted(word: str) -> str:
    r"""A file name or option for a command that is printed, as a shell takes it; bytes that no terminal shows as `$'\377.h5'`."""
    if word.isprintable():
        return shlex.quote(word)
    raw = "".join(char if char.isprintable() and char not in "\\'" else "".join(map(r"\{:03o}".format, os.fsencode(char))) for char in word)
    return f"$'{raw}'"


def display_name(path: str) -> str:
    """A stored path as text that any file format and terminal takes: bytes that are not UTF-8 and control characters are escaped."""
    return printable(os.fsencode(path))


def file_stem(path: str) -> str:
    """A stored path as a plain file name without folders, which neither leaves the output folder nor is taken for an option or a formula.

    >>> file_stem("../cats/a b.jpg")
    'cats__a_b.jpg'
    """
    parts = [part for part in display_name(path).split("/") if part not in ("", ".", "..")]
    return re.sub(r"[^\w.=+-]", "_", "__".join(parts))[-_NAME_CHARS:].lstrip(".=+-") or "image"
