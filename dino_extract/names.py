"""How a path is cleaned, stored in a file, shown to a person, quoted for a shell, and made a file name."""

from __future__ import annotations

import os
import re
import shlex

_STEM_CHARS = 60  # of a path in a file name: up to four bytes each, of the 255 that common file systems allow


def clean_key(path: bytes) -> bytes:
    """Remove `.` parts and doubled slashes. `..` stays, because a symlink before it may lead to another folder.

    >>> clean_key(b"./a//b/./c.jpg")
    b'a/b/c.jpg'
    """
    root = b"/" if path.startswith(b"/") else b""
    return root + b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))


def path_as_text(path: bytes) -> str:
    r"""Store any path as valid text. `path_from_text` reads it back.

    >>> path_as_text(b"/photos/caf\xe9")
    '/photos/caf\\xe9'
    """
    return path.replace(b"\\", rb"\x5c").decode("utf-8", "backslashreplace")


def path_from_text(text: str) -> bytes:
    r"""Read a path that `path_as_text` has stored.

    >>> path_from_text(r"/photos/caf\xe9")
    b'/photos/caf\xe9'
    """
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())


def printable(name: str | bytes, *, raw_bytes: bool = False) -> str:
    r"""Show a name on one line: control characters are escaped, and so are bytes that are not UTF-8.

    Args:
        name: a path, or any other text.
        raw_bytes: leave bytes that are not UTF-8 as surrogates, which a terminal gets as those bytes.

    >>> printable(b"a\n\xff.jpg")
    'a\\n\\xff.jpg'
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char, raw_bytes) for char in text)


def _escaped(char: str, raw_bytes: bool) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is not UTF-8
        return char if raw_bytes else f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def quoted(word: str) -> str:
    r"""Quote a file name or option for a command that a person copies into a shell.

    >>> quoted("my photos.h5")
    "'my photos.h5'"
    """
    if word.isprintable():
        return shlex.quote(word)
    raw = "".join(char if char.isprintable() and char not in "\\'" else "".join(map(r"\{:03o}".format, os.fsencode(char))) for char in word)
    return f"$'{raw}'"


def file_stem(path: str) -> str:
    """Make a stored path a plain file name, which stays in its folder and is never read as an option or a formula.

    >>> file_stem("../cats/a b.jpg")
    'cats__a_b.jpg'
    """
    parts = [part for part in printable(path).split("/") if part not in ("", ".", "..")]
    return re.sub(r"[^\w.=+-]", "_", "__".join(parts))[-_STEM_CHARS:].lstrip(".=+-") or "image"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "image"), counted(1284, "image")
    ('1 image', '1,284 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
