"""Earlier names for `dino_extract.files`, until every caller uses those."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from PIL import Image

from dino_extract import files
from dino_extract.errors import ConfigError


def writing(path: files.PathLike, what: str, *, also: type[Exception] = OSError) -> AbstractContextManager[None]:
    """See `files.writing`."""
    return files.writing(path, what, also=(also,))


def replacing(path: files.PathLike, what: str) -> AbstractContextManager[str]:
    """See `files.replace_atomically`."""
    return files.replace_atomically(path, what, overwrite=True)


def require_place(path: files.PathLike | None, what: str) -> None:
    """See `files.check_target`."""
    files.check_target(path, what, overwrite=True)


def require_picture_place(path: files.PathLike | None, what: str) -> None:
    """As `require_place`, for an image that Pillow writes: its suffix chooses the format.

    Raises:
        ConfigError: as `require_place`, or Pillow writes no file with this suffix.
    """
    require_place(path, what)
    suffix = ".png" if path is None else os.path.splitext(path)[1]
    if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
        raise ConfigError(
            f"{what} `{os.fspath(path or '')}` cannot be written: no picture has the suffix `{suffix}`", hint="`.png` or `.jpg`"
        )
