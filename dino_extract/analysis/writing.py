"""Results go where they are asked to, or the reason is one sentence; and never in the place of embeddings."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from PIL import Image

from dino_extract.errors import ConfigError
from dino_extract.store import is_store


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], what: str, *, also: type[Exception] = OSError) -> Iterator[None]:
    """Around the code that writes a result.

    Args:
        path: file or folder that is written.
        what: the word for it in the message.
        also: another error that means the same: Pillow and matplotlib have ValueError for a suffix that they do not know, safetensors
            a class of its own.

    Raises:
        ConfigError: it cannot be written, or is a file made by `embed`: hours of work, which no slip of a name may cost.
    """
    name = os.fspath(path)
    if is_store(name):
        raise ConfigError(f"{what} `{name}` would replace a file of embeddings", hint="choose another name")
    try:
        yield
    except (OSError, also) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{what} `{name}` cannot be written: {reason}") from error


def require_place(path: str | os.PathLike[str] | None, what: str) -> None:
    """Check before the work, which may take hours, that its result can go where it is asked to; None asks for nothing.

    Raises:
        ConfigError: as `writing`.
    """
    if path is None:
        return
    with writing(path, what):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.stat(os.path.join(os.path.dirname(path), "") or ".")  # with a slash at the end, which a file must not have


def require_picture_place(path: str | os.PathLike[str] | None, what: str) -> None:
    """As `require_place`, for a picture that Pillow writes: its suffix says how.

    Raises:
        ConfigError: as `writing`, or a suffix of no picture.
    """
    require_place(path, what)
    suffix = ".png" if path is None else os.path.splitext(path)[1]
    if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
        raise ConfigError(
            f"{what} `{os.fspath(path or '')}` cannot be written: no picture has the suffix `{suffix}`", hint="`.png` or `.jpg`"
        )


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], what: str) -> Iterator[str]:
    """As `writing`; gives a name to write to that becomes `path` when everything is written, so that nobody finds half a file.

    A link stays one: what it leads to is replaced.
    """
    target = os.path.realpath(path)
    partial = f"{target}.tmp"
    try:
        with writing(path, what):
            yield partial
            os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):  # it has its name by now, or could not be made
            os.unlink(partial)
