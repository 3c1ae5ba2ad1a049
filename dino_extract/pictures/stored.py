"""The images behind the rows of a store, and pictures laid side by side."""

from __future__ import annotations

import fnmatch
import json
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dino_extract.analysis.vectors.stored import require_images
from dino_extract.errors import ConfigError, DinoExtractError, SourceError
from dino_extract.images.decode import open_upright
from dino_extract.images.manifest import resolve
from dino_extract.images.preprocess import Preprocess, preprocess_image
from dino_extract.images.reading import read_image_bytes
from dino_extract.names import path_from_text, printable
from dino_extract.options import Limits, checked
from dino_extract.pictures.captions import draw_caption
from dino_extract.store import Store

GAP_PX = 6  # white between pictures
_CAPTION_PX = 18


def choose_positions(store: Store, patterns: Sequence[str] = (), limit: int | None = None) -> list[int]:
    """Positions of the embedded images that a command is about, ascending.

    Args:
        store: the file.
        patterns: paths or shell patterns such as `cats/*`; none means all. What is the path of an image is no pattern: `a[1].jpg`.
        limit: at most this many, evenly spread; None or 0 for no limit.

    Raises:
        ConfigError: a pattern matches nothing, or a limit below 0.
        StoreError: the file is unfinished, or no image of it was embedded.
    """
    require_images(store)
    paths, chosen = store.paths, set[int]()
    position_of = {path: position for position, path in enumerate(paths)}
    for pattern in patterns or ["*"]:
        named = position_of.get(pattern)
        found = [position for path, position in position_of.items() if fnmatch.fnmatchcase(path, pattern)] if named is None else [named]
        if not found:
            message = f"no embedded image of `{store.path}` is called `{pattern}`"
            raise ConfigError(message, hint=f"paths look like `{printable(paths[0])}`, and `*` stands for anything")
        chosen.update(found)
    positions = sorted(chosen)
    if limit and len(positions) > checked("limit", int, limit, Limits(least=1)):
        positions = [positions[i] for i in np.linspace(0, len(positions) - 1, limit).round().astype(int).tolist()]
    return positions


def source_picture(store: Store, path: str, *, reduce_to: tuple[int, int] | None = None) -> Image.Image:
    """The upright RGB picture that a row was made from, read from where it was when it was embedded.

    Args:
        store: the file.
        path: as in `store.paths`.
        reduce_to: (height, width) that is enough, for speed.

    Raises:
        SourceError: the image is no longer there.
        DecodeError: it cannot be read any more.
    """
    if not store.attrs.get("root"):
        raise SourceError(f"`{store.path}` does not say where its images are")
    data = read_image_bytes(resolve(path_from_text(str(store.attrs["root"])), os.fsencode(path)))
    record = json.loads(str(store.attrs.get("preprocessing", "{}")))
    options = {name: record[name] for name in ("alpha", "max_pixels") if name in record}
    return open_upright(data, reduce_to=reduce_to, **options)[0]


def seen_picture(store: Store, path: str) -> Image.Image | None:
    """The pixels that the model saw of a row, or None where the image cannot be had any more."""
    try:
        picture = source_picture(store, path)
    except DinoExtractError:  # the picture only accompanies a result that does not need it
        return None
    return preprocess_image(picture, Preprocess.from_record(json.loads(str(store.attrs["preprocessing"]))))


def patches_of_picture(preprocess: Preprocess, size: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of the patch grid that show an image of this (height, width), and not what `--preprocess pad` put around it."""
    if preprocess.policy != "pad":
        return slice(0, None), slice(0, None)
    place = preprocess.placement(*size)
    ends = ((-place.top, place.height - place.top), (-place.left, place.width - place.left))  # pixels
    rows, columns = (slice(first := round(start / preprocess.patch), max(first + 1, round(end / preprocess.patch))) for start, end in ends)
    return rows, columns


def fit_within(picture: Image.Image, side_px: int) -> Image.Image:
    """The picture scaled so that its longer side is `side_px`."""
    scale = side_px / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row on white."""
    return _lay_out(pictures, len(pictures), captions=None, margin=0)


def contact_sheet(pictures: Sequence[Image.Image], captions: Sequence[str] | None = None, *, columns: int | None = None) -> Image.Image:
    """Pictures in rows and columns on white, with a caption under each if given; about 4:3 unless `columns` says otherwise."""
    if columns is None:
        width, height = (max(sizes) for sizes in zip(*(picture.size for picture in pictures), strict=True))
        columns = min(len(pictures), max(1, round(math.sqrt(len(pictures) * 4 / 3 * height / width))))
    return _lay_out(pictures, columns, captions, margin=GAP_PX)


def _lay_out(pictures: Sequence[Image.Image], columns: int, captions: Sequence[str] | None, margin: int) -> Image.Image:
    cell_w, caption_h = max(picture.width for picture in pictures), _CAPTION_PX if captions else 0
    rows = [range(first, min(first + columns, len(pictures))) for first in range(0, len(pictures), columns)]
    heights = [max(pictures[index].height for index in row) + caption_h for row in rows]
    size = (columns * (cell_w + GAP_PX) - GAP_PX + 2 * margin, sum(heights) + GAP_PX * (len(rows) - 1) + 2 * margin)
    sheet = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(sheet), margin
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left, picture = margin + column * (cell_w + GAP_PX), pictures[index]
            sheet.paste(picture, (left + (cell_w - picture.width) // 2, top))
            if captions:
                at = (left + cell_w / 2, top + picture.height + 2)
                draw_caption(draw, at, captions[index], size_px=12, width_px=cell_w, is_centred=True)
        top += height + GAP_PX
    return sheet
