"""Trained heads as safetensors files: the arrays, and what describes them as JSON in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dino_extract.errors import StoreError
from dino_extract.files import replace_atomically

FORMAT = "1"


def save_head(
    path: str | os.PathLike[str], kind: str, arrays: Mapping[str, NDArray[np.float32]], description: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Write a head.

    Args:
        path: the file.
        kind: the kind of head, which `load_head` asks for.
        arrays: by name.
        description: anything that JSON can hold.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the file cannot be written, or exists.
    """
    metadata = {f"dino_extract_{kind}": FORMAT, kind: json.dumps(description)}
    # safetensors reports a missing folder with a class of its own, and a full disk as OSError.
    with replace_atomically(path, "classifier", overwrite=overwrite, also=(SafetensorError,)) as draft:
        save_file({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, draft, metadata=metadata)


def load_head(path: str | os.PathLike[str], kind: str, *, hint: str) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """The arrays and the description of a head; `hint` is the command that makes one.

    Raises:
        StoreError: there is no such file, or it is not a head of this kind.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise StoreError(f"there is no classifier `{name}`", hint=hint)
    try:
        with safe_open(name, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get(f"dino_extract_{kind}") != FORMAT:
                raise StoreError(f"`{name}` is not a classifier of embeddings", hint=hint)
            return {each: file.get_tensor(each) for each in file.keys()}, json.loads(metadata[kind])  # noqa: SIM118  # not a dictionary
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreError(f"`{name}` is not a classifier of embeddings, or damaged", hint=hint) from error
    except OSError as error:
        raise StoreError(f"classifier `{name}` cannot be read: {error.strerror or error}") from error
