"""Bags for multiple-instance learning: a file for each image, with its patch tokens and their places."""

from __future__ import annotations

import csv
import itertools
import json
import os
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.export.job import ExportJob
from dino_extract.analysis.tables import quoted_path
from dino_extract.errors import ConfigError
from dino_extract.files import replace_atomically, writing
from dino_extract.images.preprocess import Preprocess
from dino_extract.names import file_stem, printable
from dino_extract.store import RaggedRows

_INDEX_HEADER = "slide_id,path\n"


def write(job: ExportJob) -> list[str]:
    """Write the export and return its paths."""
    rows = job.store[job.dataset]
    if not isinstance(rows, RaggedRows) and rows.ndim != 4:
        raise ConfigError(f"bags are made of patch tokens, `{job.dataset}` has one vector per image", hint="use `--dataset patch_features`")
    if os.path.isdir(job.output) and os.listdir(job.output) and not job.overwrite:
        raise ConfigError(f"folder `{job.output}` is already there", hint="`--overwrite` replaces it, `-o` chooses another name")
    with writing(job.output, "folder"):
        os.makedirs(job.output, exist_ok=True)
    preprocess = Preprocess.from_record(json.loads(str(job.store.attrs["preprocessing"])))
    index, used = [], set[str]()
    for row, (path, size) in enumerate(zip(job.store.paths, job.store.image_size.tolist(), strict=True)):
        name = _unused(file_stem(os.path.splitext(path)[0]), row, used)
        with (
            replace_atomically(os.path.join(job.output, f"{name}.h5"), "bag", overwrite=True, sync=_no_sync) as partial,
            h5py.File(partial, "w") as file,
        ):
            _fill_bag(file, job, rows[row], preprocess, size, name)
        index.append((name, printable(path)))
    index_path = os.path.join(job.output, "index.csv")
    _remove_bags_but({name for name, _ in index}, index_path)
    with replace_atomically(index_path, "index", overwrite=True) as partial, open(partial, "w", newline="", encoding="utf-8") as text:
        text.write(_INDEX_HEADER)
        text.writelines(f"{quoted_path(name)},{quoted_path(path)}\n" for name, path in index)
    return [job.output]


def _remove_bags_but(kept: set[str], index_path: str) -> None:
    """Delete the bags of an earlier export that this one has not written, so that the folder holds a single export."""
    if not os.path.isfile(index_path):
        return
    with open(index_path, newline="", encoding="utf-8", errors="surrogateescape") as text:
        earlier = {line[0] for line in csv.reader(text)} if text.readline() == _INDEX_HEADER else set[str]()
    for name in earlier - kept:
        path = os.path.join(os.path.dirname(index_path), f"{name}.h5")
        if os.path.dirname(name) == "" and os.path.lexists(path):
            with writing(path, "bag"):
                os.unlink(path)


def _fill_bag(file: h5py.File, job: ExportJob, patches: NDArray[Any], preprocess: Preprocess, size: tuple[int, int], name: str) -> None:
    """Write a bag with the names, types and attributes of TRIDENT. `coords` are pixels (x, y) of the image on the disk."""
    height, width = patches.shape[:2]
    place = preprocess.placement(*size)
    y = (np.arange(height) * preprocess.patch + place.top) * size[0] / place.height
    x = (np.arange(width) * preprocess.patch + place.left) * size[1] / place.width
    coords = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    features = file.create_dataset("features", data=job.cast(patches.reshape(-1, patches.shape[-1])))
    features.attrs.update({"name": name, "encoder": str(job.store.attrs.get("model", ""))})
    places = file.create_dataset("coords", data=np.round(coords).astype(np.int64))
    patch_px = round(preprocess.patch * size[1] / place.width)
    places.attrs.update(
        {
            "name": name,
            "patch_size": patch_px,
            "patch_size_level0": patch_px,
            "overlap": 0,
            "level0_width": size[1],
            "level0_height": size[0],
        }
    )


def _unused(stem: str, row: int, used: set[str]) -> str:
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(row)))
    name = next(name for name in names if name.casefold() not in used)  # some file systems treat `A.h5` and `a.h5` as one file
    used.add(name.casefold())
    return name


def _no_sync(descriptor: int) -> None:
    """Bags are not synced to the disk one by one, which takes minutes for thousands: the index, written last, says which are complete."""
