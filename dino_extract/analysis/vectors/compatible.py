"""Whether the vectors of two files can be compared: the same network must have made both, from images prepared in the same way."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dino_extract.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from dino_extract.embedding.recipe import HasRecord

# Settings of the preprocessing that may differ: they decide which images are read, or change the decoded pixels very little. The type of
# the stored numbers, which only rounds, may differ too. `embed` still keeps these settings equal within one file.
_MAY_DIFFER = {"max_pixels", "max_bytes", "fast_decode", "decode"}
_OPTIONS = {"policy": "preprocess"}


def require_compatible(one: HasRecord, other: HasRecord) -> None:
    """Check that the same image would have nearly the same vector in both.

    Every setting that changes vectors must be equal, the input size too, and a difference is an error instead of a warning. Between files
    made with different settings, a cosine depends on the settings as much as on the images. Thresholds then miss copies and accuracies
    fall, and nothing in the result shows it. To override the check, pass arrays instead of files.

    Args:
        one: a store, or a classifier trained on one.
        other: the same.

    Raises:
        StoreError: the networks or the preparation of the images differ. The message names every difference.
    """
    ours, theirs = _record(one.attrs), _record(other.attrs)
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    found = [f"{name} {_short(ours.get(name))} and {_short(theirs.get(name))}" for name in differing]
    if found:
        raise StoreError(
            f"`{one.path}` and `{other.path}` are not compatible ({', '.join(found)}): their vectors cannot be compared",
            hint="embed one of them again with the options of the other",
        )


def require_other_images(train: HasRecord, test: HasRecord, labels_of_test: object) -> None:
    """Check that the test images are not the training images; separate labels or targets may choose other images of the same file.

    Raises:
        ConfigError: both are one file, and the test has no labels or targets of its own.
    """
    if labels_of_test is None and os.path.realpath(train.path) == os.path.realpath(test.path):
        raise ConfigError(
            f"`{test.path}` would be tested on the images it was trained on",
            hint="without a test file, images of the first are held out",
        )


def require_other_file(one: HasRecord, against: HasRecord) -> None:
    """Check that a file is not compared with itself.

    Raises:
        ConfigError: both are one file.
    """
    if os.path.realpath(one.path) == os.path.realpath(against.path):
        raise ConfigError(f"`against` is the file itself, `{against.path}`", hint="name another file, or leave `against` out")


def _record(attrs: Mapping[str, Any]) -> dict[str, str]:
    """The settings that must be equal, as text, under the names that users know."""
    pixels = {name: value for name, value in json.loads(str(attrs.get("preprocessing", "{}"))).items() if name not in _MAY_DIFFER}
    pixels.pop("resize", None)  # follows from the policy
    size = f"{pixels.pop('height', None)}x{pixels.pop('width', None)}"
    model = {"model": str(attrs.get("model")), "weights": str(attrs.get("weights_sha256"))}
    return model | {"size": size} | {_OPTIONS.get(name, name): str(value) for name, value in pixels.items()}


def _short(value: str | None) -> str:
    return "unknown" if value is None else value if len(value) < 64 else f"{value[:16]}..."  # of a hash
