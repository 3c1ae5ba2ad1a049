"""Whether two files may be compared: made by one network, from pixels that were prepared alike, and not one and the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dino_extract.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from dino_extract.embedding.recipe import MadeWith

# Of the record of preprocessing, what does not count: which images are read at all, and decoding that smooths a little differently. Nor
# does the type of numbers, which rounds. (`embed` keeps these apart nevertheless, so that one file is of one piece.) Tokens and layers
# that a file lacks are missed by name.
_NOT_IN_THE_VECTORS = {"max_pixels", "max_bytes", "fast_decode", "decode"}
_OPTIONS = {"policy": "--preprocess", "alpha": "--alpha"}


def require_made_alike(one: MadeWith, other: MadeWith) -> None:
    """Check that the same image would have nearly the same vector in both.

    Everything that moves vectors is an error, the input size too, and not a warning: between files made differently, a cosine says as
    much about the settings as about the images, so thresholds miss copies and accuracies fall, while the result looks like any other.
    To embed one of them again is a single command; who knows better has the functions that take arrays of vectors.

    Args:
        one: a store, or a classifier trained on one.
        other: the same.

    Raises:
        StoreError: they were made by different networks or from differently prepared pixels; the message names every difference.
    """
    ours, theirs = _record(one.attrs), _record(other.attrs)
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    found = [f"{name} {_short(ours.get(name))} and {_short(theirs.get(name))}" for name in differing]
    if found:
        raise StoreError(
            f"`{one.path}` and `{other.path}` were not made alike ({', '.join(found)}): their vectors cannot be compared",
            hint="embed one of them again with the options of the other",
        )


def require_other_images(train: MadeWith, test: MadeWith, told_apart_by: object) -> None:
    """Check that no image is tested on itself; labels or targets of the test's own may say which images of one file are meant.

    Raises:
        ConfigError: one file, and nothing that tells its images apart.
    """
    if told_apart_by is None and os.path.realpath(train.path) == os.path.realpath(test.path):
        raise ConfigError(
            f"`{test.path}` would be tested on the images it was trained on",
            hint="without a test file, images of the first are held out",
        )


def require_other_file(one: MadeWith, against: MadeWith) -> None:
    """Check that a file is not compared with itself, which has every image.

    Raises:
        ConfigError: one file.
    """
    if os.path.realpath(one.path) == os.path.realpath(against.path):
        raise ConfigError(f"`--against {against.path}` is the file itself, which has every image", hint="leave `--against` out")


def _record(attrs: Mapping[str, Any]) -> dict[str, str]:
    """What counts, as text by the name that users know it by."""
    pixels = {name: value for name, value in json.loads(str(attrs.get("preprocessing", "{}"))).items() if name not in _NOT_IN_THE_VECTORS}
    pixels.pop("resize", None)  # words that follow from the policy
    size = f"{pixels.pop('height', None)}x{pixels.pop('width', None)}"
    model = {"--model": str(attrs.get("model")), "weights": str(attrs.get("weights_sha256"))}
    return model | {"--size": size} | {_OPTIONS.get(name, name): str(value) for name, value in pixels.items()}


def _short(value: str | None) -> str:
    return "unknown" if value is None else value if len(value) < 64 else f"{value[:16]}..."  # of a hash
