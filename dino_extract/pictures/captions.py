"""One line of text below an image, in Pillow's own font, which has the letters of English."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable

from PIL import ImageDraw, ImageFont


def draw_caption(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, *, size_px: int, width_px: float, is_centred: bool = False
) -> None:
    """Write a line in black, shortened where it is wider than `width_px`; `at` is its left or, centred, its middle, at the top."""
    font = ImageFont.load_default(size_px)
    text = shortened(in_ascii(text), lambda line: font.getlength(line) <= width_px)
    left = at[0] - (font.getlength(text) / 2 if is_centred else 0)
    draw.text((left, at[1]), text, "black", font)


def shortened(text: str, fits: Callable[[str], bool]) -> str:
    """The text if it fits, else without its middle; of a path, the folder of the image stays, because it often names the class.

    >>> shortened("dogs/train/samoyed/n02111889_34430.jpg", lambda line: len(line) <= 17)
    'samoyed/..._34430'
    """
    folder, name = posixpath.split(text)
    if folder:
        start, stem = f"{posixpath.basename(folder)}/", posixpath.splitext(name)[0]
        candidates = [f"{start}{name}", *(f"{start}...{stem[-count:]}" for count in range(len(stem) - 1, 5, -1))]
        candidates += [f"{start[:count]}...{stem[-6:]}" for count in range(len(start) - 2, 0, -1)]
    else:
        candidates = [f"{text[:count]}...{text[-count:]}" for count in range(len(text) // 2, 0, -1)]
    return next(filter(fits, [text, *candidates]), text[-1:])


def in_ascii(text: str) -> str:
    """The text in ASCII: letters lose their accents, and every other character becomes its number in Unicode."""
    bare = "".join(part for part in unicodedata.normalize("NFKD", text) if not unicodedata.combining(part))
    return bare.encode("ascii", "backslashreplace").decode()
