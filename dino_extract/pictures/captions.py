"""Text below pictures, in fonts that have its letters: Pillow's own has those of English alone."""

from __future__ import annotations

import itertools
import subprocess
import unicodedata
from functools import cache
from typing import NamedTuple

from PIL import ImageDraw, ImageFont

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class SystemFont(NamedTuple):
    """A font file and the code points that it has, as (first, last) pairs."""

    path: str
    ranges: tuple[tuple[int, int], ...]

    def has(self, char: str) -> bool:
        """Whether a character is in it."""
        return any(first <= ord(char) <= last for first, last in self.ranges)


_found: list[SystemFont] = []  # so that fontconfig is not asked for every letter


def draw_caption(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, *, size_px: int, width_px: float, is_centred: bool = False
) -> None:
    """Write the end of a text that fits a width, in black; the end of a path says more than its start.

    Args:
        draw: where.
        at: x and y in pixels of the top left, or of the middle of the top.
        text: one line.
        size_px: of the letters.
        width_px: room for it.
        is_centred: whether `at` is the middle.
    """
    runs, shown = _runs(text, size_px), text
    while shown and _length(runs) > width_px:
        shown = shown[1:]
        runs = _runs(f"...{shown}", size_px)
    left, baseline = at[0] - (_length(runs) / 2 if is_centred else 0), at[1] + _ascent(size_px)
    for part, font in runs:
        draw.text((left, baseline), part, "black", font, anchor="ls")
        left += font.getlength(part)


def _runs(text: str, size_px: int) -> list[tuple[str, _Font]]:
    """The text in pieces of one font each; a letter that no font has loses its accent, or stands as its number in Unicode."""
    pieces = ((char, font) if (font := _font_of(char, size_px)) else (in_ascii(char), _default(size_px)) for char in text)
    return [("".join(part for part, _ in run), font) for font, run in itertools.groupby(pieces, key=lambda piece: piece[1])]


def _length(runs: list[tuple[str, _Font]]) -> float:
    return sum(font.getlength(part) for part, font in runs)


def in_ascii(char: str) -> str:
    """A letter without its accent, `e` for an accented e, or its number in Unicode."""
    bare = "".join(part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part))
    return bare.encode("ascii", "backslashreplace").decode()


def _font_of(char: str, size_px: int) -> _Font | None:
    if char.isascii():
        return _default(size_px)
    font = system_font(char)
    return _opened(font.path, size_px) if font else None


@cache
def system_font(char: str) -> SystemFont | None:
    """A font of this machine that has a character, found by fontconfig; None where there is none, or no fontconfig."""
    if known := next((font for font in _found if font.has(char)), None):
        return known
    command = ["fc-match", "--format=%{file}\n%{charset}", f":charset={ord(char):x}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):  # the text is readable without
        return None
    path, _, charset = answer.partition("\n")
    ends = [part.split("-") for part in charset.split()]
    font = SystemFont(path, tuple((int(each[0], 16), int(each[-1], 16)) for each in ends))
    if not font.has(char):  # the nearest there is
        return None
    try:
        _opened(path, 12)
    except OSError:  # bitmaps of one size alone, as of emoji
        return None
    _found.append(font)
    return font


@cache
def _opened(path: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size_px)


@cache
def _default(size_px: int) -> _Font:
    return ImageFont.load_default(size_px)


def _ascent(size_px: int) -> float:
    """Pixels from the top of a line of Pillow's own font down to its baseline, on which letters of other fonts stand too."""
    font = _default(size_px)
    return font.getmetrics()[0] if isinstance(font, ImageFont.FreeTypeFont) else size_px
