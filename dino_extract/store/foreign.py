"""HDF5 files that may come from anyone: what they must not contain (ways out of the file, sizes it does not have), and a safe read."""

from __future__ import annotations

import math
import operator
import os
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dino_extract.errors import StoreError
from dino_extract.store import disk

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_OBJECTS = 100_000  # a store has a few dozen; more only makes the check slow
_MAX_RATIO = 1032  # deflate cannot do better, so a larger claim is a lie
_KNOWN_FILTERS = {1: "gzip", 2: "shuffle", 32000: "lzf"}
_HINT = "use only files that you or someone you trust made with `dino-extract embed`"


def read_dataset(path: str, name: str) -> NDArray[Any]:
    """All values of one dataset of any HDF5 file, such as labels that another program wrote.

    Raises:
        StoreError: no such file or dataset, not HDF5, or not safe to read.
    """
    with disk.explained(f"read `{path}`"):
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # the plain reason, before HDF5 wraps it
    if not os.path.isfile(path) or not h5py.is_hdf5(path):
        raise StoreError(f"`{path}` is not an HDF5 file")
    try:
        with h5py.File(path, "r", locking=False) as file:
            check_foreign(file, path)
            dataset = file.get(name)
            if not isinstance(dataset, h5py.Dataset):
                raise StoreError(f"`{path}` has no dataset `{name}`", hint=f"it has {', '.join(sorted(file)) or 'nothing'}")
            return np.asarray(dataset[()])
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:  # what h5py says of damaged files
        raise StoreError(f"`{name}` of `{path}` is damaged: {error}") from error


def begins_as_hdf5(path: str) -> bool:
    """Whether there is a file that begins with the signature of HDF5, or did before one byte of that was damaged."""
    if not os.path.isfile(path):
        return False
    with disk.explained(f"read `{path}`"), open(path, "rb") as file:
        start = file.read(len(_SIGNATURE))
    return len(start) == len(_SIGNATURE) and sum(map(operator.ne, start, _SIGNATURE)) <= 1  # a PNG differs in three


def check_foreign(file: h5py.File, path: str) -> None:
    """Refuse a file that leads a reader elsewhere, or claims more than it holds; looks at metadata only.

    Raises:
        StoreError: external links, external or virtual or unknown storage, or a dataset larger than the file.
    """
    size = os.stat(path).st_size
    seen: set[int] = set()
    waiting = [h5py.h5g.open(file.id, b"/")]
    while waiting:
        group = waiting.pop()
        if group.get_num_objs() > _MAX_OBJECTS:
            raise StoreError(f"`{path}` has more than {_MAX_OBJECTS:,} objects in one group", hint=_HINT)
        for name in list(group):
            _check_link(group, name, path)
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                continue
            info = h5py.h5o.get_info(group, name)
            if info.addr in seen:
                continue
            seen.add(info.addr)
            if len(seen) > _MAX_OBJECTS:
                raise StoreError(f"`{path}` has more than {_MAX_OBJECTS:,} objects", hint=_HINT)
            if info.type == h5py.h5o.TYPE_GROUP:
                waiting.append(h5py.h5g.open(group, name))
            elif info.type == h5py.h5o.TYPE_DATASET:
                check_dataset(h5py.h5d.open(group, name), name.decode(errors="replace"), path, size)


def _check_link(group: Any, name: bytes, path: str) -> None:
    # Soft links stay inside the file, and every place inside the file is looked at.
    kind = group.links.get_info(name).type
    if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
        raise StoreError(f"`{path}` links to another file (`{name.decode(errors='replace')}`), which is not followed", hint=_HINT)


def check_dataset(dataset: Any, name: str, path: str, file_nbytes: int) -> None:
    """Refuse a dataset whose bytes are not all in this file.

    Args:
        dataset: `h5py.h5d.DatasetID`.
        name: for the message.
        path: for the message.
        file_nbytes: size of the file.
    """
    placement = dataset.get_create_plist()
    layout = placement.get_layout()
    declared = math.prod(dataset.shape or (1,)) * dataset.get_type().get_size()
    problem = None
    if placement.get_external_count():
        problem = "keeps its data in another file"
    elif layout == h5py.h5d.VIRTUAL:
        problem = "is virtual: its data is in other files"
    elif layout == h5py.h5d.CONTIGUOUS and declared:
        offset = dataset.get_offset()
        if offset is None or offset + declared > file_nbytes:
            problem = f"claims {declared:,} bytes, more than the file holds ({file_nbytes:,})"
    elif layout == h5py.h5d.CHUNKED:
        problem = _chunk_problem(dataset, placement, declared)
    if problem:
        raise StoreError(f"dataset `{name}` of `{path}` {problem}", hint=_HINT)


def _chunk_problem(dataset: Any, placement: Any, declared: int) -> str | None:
    filters = [placement.get_filter(i)[0] for i in range(placement.get_nfilters())]
    unknown = [number for number in filters if number not in _KNOWN_FILTERS]
    if unknown:
        return f"is packed with HDF5 filter {unknown[0]}; only {', '.join(_KNOWN_FILTERS.values())} are read"
    held = dataset.get_storage_size()
    chunk = placement.get_chunk()
    chunk_nbytes = math.prod(chunk) * dataset.get_type().get_size()
    if max(declared, chunk_nbytes) > _MAX_RATIO * held + 4096:
        return f"claims {declared:,} bytes in chunks of {chunk_nbytes:,}, but holds {held:,}"
    expected = math.prod(-(-side // step) for side, step in zip(dataset.shape, chunk, strict=True))
    if dataset.get_num_chunks() != expected:
        return f"lacks {expected - dataset.get_num_chunks():,} of its {expected:,} chunks"
    return None
