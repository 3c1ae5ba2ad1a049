"""The images that the rows of a store were made from."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dino_extract.analysis.vectors.stored import require_images
from dino_extract.errors import ConfigError, DinoExtractError, SourceError
from dino_extract.images.decode import open_upright
from dino_extract.images.manifest import resolve
from dino_extract.images.preprocess import Preprocess, preprocess_image
from dino_extract.images.reading import read_image_bytes
from dino_extract.names import path_from_text, printable
from dino_extract.options import Limits, checked
from dino_extract.store import Store


def choose_positions(store: Store, patterns: Sequence[str] = (), images: int | None = None) -> list[int]:
    """Positions of the chosen images among the embedded ones, ascending.

    Args:
        store: the file.
        patterns: paths or shell patterns such as `cats/*`; none means all. An exact path is never a pattern, so `a[1].jpg` works.
        images: use at most this many, evenly spread; None or 0 for all.

    Raises:
        ConfigError: a pattern matches nothing, or `images` is below 0.
        StoreError: the file is unfinished, or no image of it was embedded.
    """
    require_images(store)
    paths, chosen = store.paths, set[int]()
    position_of = {path: position for position, path in enumerate(paths)}
    for pattern in patterns or ["*"]:
        found = [pattern] if pattern in position_of else fnmatch.filter(paths, pattern)
        if not found:
            message = f"no embedded image of `{store.path}` is called `{pattern}`"
            raise ConfigError(message, hint=f"paths look like `{printable(paths[0])}`, and `*` stands for anything")
        chosen.update(position_of[path] for path in found)
    positions = sorted(chosen)
    if images and len(positions) > checked("images", int, images, Limits(least=1)):
        positions = [positions[i] for i in np.linspace(0, len(positions) - 1, images).round().astype(int).tolist()]
    return positions


def source_image(store: Store, path: str, *, reduce_to: tuple[int, int] | None = None) -> Image.Image:
    """The image of a row, upright and in RGB, read from where it was when it was embedded.

    Args:
        store: the file.
        path: as in `store.paths`.
        reduce_to: a (height, width) that is large enough, which makes decoding faster.

    Raises:
        SourceError: the file does not say where its images are.
        ImageError: the image was deleted, or it cannot be read any more.
    """
    if not store.attrs.get("root"):
        raise SourceError(f"`{store.path}` does not say where its images are")
    data = read_image_bytes(resolve(path_from_text(str(store.attrs["root"])), os.fsencode(path)))
    record = json.loads(str(store.attrs.get("preprocessing", "{}")))
    options = {name: record[name] for name in ("alpha", "max_pixels") if name in record}
    return open_upright(data, reduce_to=reduce_to, **options)[0]


def preprocessed_image(store: Store, path: str) -> Image.Image | None:
    """The image of a row as the model saw it, or None where the image cannot be read any more."""
    try:
        image = source_image(store, path)
    except DinoExtractError:  # the image only accompanies a result, which is complete without it
        return None
    return preprocess_image(image, preprocessing_of(store))


def preprocessing_of(store: Store) -> Preprocess:
    """How the images of a store were preprocessed."""
    return Preprocess.from_record(json.loads(str(store.attrs["preprocessing"])))


def patches_of_image(preprocess: Preprocess, size: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of the patch grid that show an image of this (height, width), without the padding of `--preprocess pad`."""
    if preprocess.policy != "pad":
        return slice(0, None), slice(0, None)
    place = preprocess.placement(*size)
    ends = ((-place.top, place.height - place.top), (-place.left, place.width - place.left))  # pixels
    rows, columns = (slice(first := round(start / preprocess.patch), max(first + 1, round(end / preprocess.patch))) for start, end in ends)
    return rows, columns
