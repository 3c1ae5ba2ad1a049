"""Small stores of real files: images with a known foreground, and patch tokens in which that foreground can be found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_extract.images.preprocess import Preprocess
from dino_extract.status import Status
from dino_extract.store import Layout, RowDataset, RowTable, Store, open_store, open_writer

DIM = 24


def disc(height: int, width: int) -> NDArray[np.bool_]:
    """A disc in the middle of a patch grid: True on about a quarter of it."""
    y, x = np.mgrid[:height, :width]
    return ((y - (height - 1) / 2) / height) ** 2 + ((x - (width - 1) / 2) / width) ** 2 < 0.29**2


def patch_field(height: int, width: int, seed: int) -> NDArray[np.float32]:
    """(h, w, DIM) tokens: the disc differs from the background along one axis, and varies along three others inside."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width) - 0.5
    tokens = rng.normal(0, 0.05, (height, width, DIM))
    inside = disc(height, width)
    tokens[..., 0] += np.where(inside, 3.0, -1.0)
    tokens[..., 1] += np.where(inside, 2 * x, 0)
    tokens[..., 2] += np.where(inside, 1.5 * y, 0)
    tokens[..., 3] += np.where(inside, x * y * 4, 0)
    return tokens.astype(np.float32) + 0.5


def write_photo(path: Path, side: int, seed: int) -> None:
    """A picture with a bright disc on a dark ground, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), 40, np.uint8) + rng.integers(0, 20, (side, side, 3), dtype=np.uint8)
    pixels[disc(side, side)] = rng.integers(120, 256, 3)
    Image.fromarray(pixels).save(path, quality=90)


def make_store(
    folder: Path,
    names: Sequence[str] = ("cats/a.jpg", "cats/b.jpg", "dogs/c.jpg", "dogs/d.jpg", "dogs/e.jpg"),
    *,
    grids: Sequence[tuple[int, int]] | None = None,
    broken: Sequence[str] = (),
    features: NDArray[np.float32] | None = None,
    patches: Sequence[NDArray[np.float32]] | None = None,
    with_photos: bool = True,
    is_finished: bool = True,
    attrs: dict[str, str] | None = None,
    size: tuple[int, int] = (128, 128),
) -> Store:
    """A finished store of the named images (sorted), open for reading.

    Args:
        folder: where `photos/` and `photos.h5` go.
        names: keys; `photos/NAME` is written for each of them.
        grids: patch grid of each image for a ragged file; by default 8 x 8 for all.
        broken: names that could not be embedded.
        features: (N, D) rows of `features`, in sorted order; random by default.
        patches: rows of `patch_features`, in sorted order; `patch_field` by default.
        with_photos: whether the photographs exist.
        is_finished: False leaves the last row out and the file a `.part`.
        attrs: root attributes to replace.
        size: height and width in pixels that the file says its images have.
    """
    names = sorted(names)
    root = folder / "photos"
    for index, name in enumerate(names if with_photos else ()):
        write_photo(root / name, 128, index)
    shapes = list(grids) if grids else [(8, 8)] * len(names)
    tokens = list(patches) if patches is not None else [patch_field(*shape, seed) for seed, shape in enumerate(shapes)]
    vectors = features if features is not None else np.random.default_rng(0).normal(size=(len(names), DIM)).astype(np.float32)
    dim = tokens[0].shape[-1]
    patch_shape = (dim,) if grids else tokens[0].shape
    preprocess = Preprocess(policy="native" if grids else "crop", height=112, width=112)
    layout = Layout(
        (
            RowDataset("features", vectors.shape[1:], "float32"),
            RowDataset("patch_features", patch_shape, "float32", is_ragged=bool(grids)),
            RowDataset("layers/3/patch_features", patch_shape, "float32", is_ragged=bool(grids)),
        ),
        {
            "model": "vits14",
            "weights_sha256": "ab" * 32,
            "preprocessing": json.dumps(preprocess.as_record()),
            "root": str(root),
            "patch_size": 14,
            "versions": '{"torch": "2"}',
            **(attrs or {}),
        },
        ("model",),
    )
    zeros = np.zeros(len(names), np.int64)
    table = RowTable(
        [name.encode("utf-8", "surrogateescape") for name in names], zeros, zeros, np.array(shapes, np.int32) if grids else None
    )
    status = [Status.UNREADABLE if name in broken else Status.OK for name in names]
    flat = [each.reshape(-1, dim) for each in tokens] if grids else np.stack(tokens)
    writer = open_writer(folder / "photos.h5", table, layout)
    with writer:
        rows = np.arange(len(names) if is_finished else len(names) - 1)
        writer.write(
            rows,
            {"features": vectors[rows], "patch_features": flat[: len(rows)], "layers/3/patch_features": flat[: len(rows)]},
            image_size=np.tile(np.array(size, np.int32), (len(rows), 1)),
            status=status[: len(rows)],
            errors=["decode: not an image" if each else "" for each in status[: len(rows)]],
        )
        if is_finished:
            writer.finish()
    return open_store(folder / "photos.h5")
