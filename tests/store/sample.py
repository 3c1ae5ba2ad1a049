"""A store small enough to be built in milliseconds, whose every byte follows from its keys."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from dino_extract.status import Status
from dino_extract.store import Layout, RowDataset, RowTable, Writer

LAYOUT = Layout(
    datasets=(RowDataset("features", (8,), "float16"), RowDataset("layers/9/patch_features", (2, 3, 4), "float32")),
    attrs={"model": "vits14", "preprocess": '{"crop": 224, "resize": 256}', "versions": '{"torch": "2.15"}'},
    signature=("model", "preprocess"),
)
RAGGED = Layout(
    (RowDataset("features", (8,), "float16"), RowDataset("patch_features", (4,), "float32", is_ragged=True)),
    {"model": "vits14"},
    ("model",),
)


def table(keys: list[bytes] | int, *, mtime_ns: int = 7, is_ragged: bool = False) -> RowTable:
    """A row table whose sizes follow from the keys; a number stands for that many keys."""
    if isinstance(keys, int):
        keys = [f"images/{i:05}.jpg".encode() for i in range(keys)]
    codes = np.array([zlib.crc32(key) for key in keys], np.int64)
    grid = np.stack([1 + codes % 3, codes // 3 % 3], axis=1).astype(np.int32).reshape(-1, 2)
    return RowTable(keys, codes % 1000, np.full(len(keys), mtime_ns, np.int64), grid if is_ragged else None)


def fate(key: bytes) -> Status:
    """What becomes of an image: one in seven cannot be read."""
    return Status.UNREADABLE if zlib.crc32(key) % 7 == 3 else Status.OK


def row_values(key: bytes, layout: Layout, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The row that the pretended model gives for an image."""
    rng = np.random.default_rng(zlib.crc32(key + name.encode()))
    dataset = next(each for each in layout.datasets if each.name == name)
    return rng.standard_normal(shape).astype(dataset.numpy_dtype)


def fill(
    writer: Writer,
    layout: Layout = LAYOUT,
    *,
    batch: int = 5,
    start: int = 0,
    limit: int | None = None,
    fate_of: Callable[[bytes], Status] = fate,
) -> list[bytes]:
    """Compute pending rows in ascending order, from number `start` to `limit`, and give back their keys."""
    pending = writer.pending[start:limit]
    for first in range(0, len(pending), batch):
        write_rows(writer, pending[first : first + batch], layout, fate_of)
    return [writer.keys[row] for row in pending]


def write_rows(writer: Writer, rows: np.ndarray, layout: Layout = LAYOUT, fate_of: Callable[[bytes], Status] = fate) -> None:
    """Hand over the pretended model's results for some rows."""
    keys = [writer.keys[row] for row in rows]
    grid = table(keys, is_ragged=True).grid_size
    arrays = {}
    for dataset in layout.datasets:
        if dataset.is_ragged:
            arrays[dataset.name] = [
                row_values(key, layout, dataset.name, (int(h * w), *dataset.shape)) for key, (h, w) in zip(keys, grid, strict=True)
            ]
        else:
            arrays[dataset.name] = np.stack([row_values(key, layout, dataset.name, dataset.shape) for key in keys])
    status = [fate_of(key) for key in keys]
    errors = ["" if each == Status.OK else f"decode: DecodeError: {key!r} is odd" for key, each in zip(keys, status, strict=True)]
    sizes = np.array([(zlib.crc32(key) % 100, 50) for key in keys], np.int32)
    writer.write(rows, arrays, image_size=sizes, status=status, errors=errors)
