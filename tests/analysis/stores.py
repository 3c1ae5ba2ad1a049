"""Small finished stores with given vectors, for the tests of the analyses."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from dino_extract.status import Status
from dino_extract.store import Layout, RowDataset, RowTable, open_writer


def write_store(
    path: str | os.PathLike[str],
    keys: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    *,
    model: str = "vits14",
    root: str = "/photos",
    failed: Sequence[int] = (),
    image_size: np.ndarray | None = None,
    attrs: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> str:
    """Write a store whose rows are `arrays` (in the order of the sorted keys) and give back its path; `limit` leaves it unfinished."""
    assert list(keys) == sorted(keys)
    layout = Layout(
        tuple(RowDataset(name, array.shape[1:], str(array.dtype)) for name, array in arrays.items()),
        {
            "model": model,
            "weights_sha256": f"sha-of-{model}",
            "root": root,
            "tokens": "cls",
            "layers": "",
            "preprocessing": json.dumps({"policy": "crop"}),
            **(attrs or {}),
        },
        ("model",),
    )
    zeros = np.zeros(len(keys), np.int64)
    rows = RowTable([os.fsencode(key) for key in keys], zeros, zeros)
    with open_writer(path, rows, layout) as writer:
        chosen = writer.pending[:limit]
        status = [Status.UNREADABLE if row in failed else Status.OK for row in chosen]
        size = np.full((len(keys), 2), 100, np.int32) if image_size is None else image_size.astype(np.int32)
        writer.write(
            chosen,
            {name: array[chosen] for name, array in arrays.items()},
            image_size=size[chosen],
            status=status,
            errors=["broken" if each != Status.OK else "" for each in status],
        )
        if limit is None:
            writer.finish()
    return os.fspath(path)


def blobs(num_classes: int, per_class: int, dim: int, *, spread: float = 0.5, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Vectors around random centres, (n, dim) float32, and the class of each, class after class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1234).standard_normal((num_classes, dim))
    vectors = np.repeat(centres, per_class, axis=0) + spread * rng.standard_normal((num_classes * per_class, dim))
    return vectors.astype(np.float32), [f"class{code:03}" for code in range(num_classes) for _ in range(per_class)]


def keys_of(labels: Sequence[str]) -> list[str]:
    """A key for each label, in a folder of that name; sorted if the labels are."""
    return [f"{label}/{number:05}.jpg" for number, label in enumerate(labels)]
