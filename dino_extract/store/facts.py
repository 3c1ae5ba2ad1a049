"""What a store holds and how it was made; while a run goes on, how far it is."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from dino_extract.errors import StoreError
from dino_extract.names import printable
from dino_extract.results import Result
from dino_extract.store.layout import part_path_of
from dino_extract.store.reader import Store, open_store
from dino_extract.store.selection import RaggedRows, Rows


@dataclass(frozen=True, repr=False)
class FileInfo(Result):
    """What `info` found.

    Args:
        file: the file that was read.
        complete: whether every row is written.
        rows: rows of the file.
        done: rows that are written.
        update: of the run that will replace this file: its `file`, rows `done` and `rows`, or the `error` of reading it; or None.
        embedded: images with an embedding.
        failed: images without one.
        model: name of the model.
        weights: where the weights came from.
        weights_sha256: SHA-256 of the weights.
        licence: licence of the weights.
        datasets: `dtype` and `shape` of each dataset; the shape is None if images have different numbers of patches.
        preprocessing: how an image became the input of the model.
        compute_dtype: precision of the model.
        versions: packages that made the file.
        root: folder that the paths start from.
        sources: what was embedded, as it was typed.
        shard: K/N if the file holds one of N parts, or None.
    """

    file: str
    complete: bool
    rows: int
    done: int
    update: dict[str, Any] | None
    embedded: int
    failed: int
    model: str
    weights: str
    weights_sha256: str
    licence: str
    datasets: dict[str, dict[str, Any]]
    preprocessing: dict[str, Any]
    compute_dtype: str
    versions: dict[str, str]
    root: str
    sources: list[str]
    shard: str | None

    def summary(self) -> str:
        """Counts and model in a few words."""
        return f"{self.file}: {self.embedded:,} of {self.rows:,} rows embedded with {self.model}"

    def text(self) -> str:
        """The facts for people, one on each line."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        values["datasets"] = {name: f"{each['dtype']} {_shape_text(each['shape'])}" for name, each in self.datasets.items()}
        return "\n".join(f"{name:16}{printable(_text(value), raw_bytes=True)}" for name, value in values.items())


def info(path: str | os.PathLike[str]) -> FileInfo:
    """What a file holds and how it was made. Of a file that is not finished, its `.part` is read.

    Raises:
        StoreError: there is no such file, or it is not one of ours.
    """
    with open_store(path) as store:
        attrs = store.attrs
        done, rows = store.progress
        return FileInfo(
            file=store.path,
            complete=store.is_complete,
            rows=rows,
            done=done,
            update=_update(store.path),
            embedded=len(store),
            failed=store.num_failed,
            datasets={name: _dataset(store[name]) for name in store.names},
            preprocessing=json.loads(attrs["preprocessing"]),
            versions=json.loads(attrs["versions"]),
            sources=json.loads(attrs["sources"]),
            shard=attrs.get("shard"),
            **{name: attrs[name] for name in ("model", "weights", "weights_sha256", "licence", "compute_dtype", "root")},
        )


def _update(path: str) -> dict[str, Any] | None:
    """How far the run is that will replace a finished file."""
    part_path = part_path_of(path)
    if not os.path.lexists(part_path):
        return None
    try:
        with Store(part_path) as part:
            done, rows = part.progress
    except StoreError as error:  # says nothing about the finished file
        return {"file": part_path, "error": error.message}
    return {"done": done, "rows": rows, "file": part_path}


def _dataset(rows: Rows | RaggedRows) -> dict[str, Any]:
    return {"dtype": str(rows.dtype), "shape": list(rows.shape) if isinstance(rows, Rows) else None}


def _shape_text(shape: list[int] | None) -> str:
    return "ragged" if shape is None else str(tuple(shape))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
