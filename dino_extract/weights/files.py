"""Checkpoint files on disk: tensors in and out, never running code from a pickle, hashed, and replaced in one step."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dino_extract.errors import WeightsError
from dino_extract.files import replace_atomically, writing

# A 67 MB header with a million empty tensors costs the library 4 s and 1.5 GB; ViT-g has 567 tensors in 60 kB.
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000

METADATA_KEY = "dino_extract"
METADATA_FORMAT = 1

# Where training frameworks put the weights inside a .pth file, the most useful first: a teacher is better than its student.
CONTAINER_KEYS = ("teacher", "model", "state_dict", "model_state_dict", "student")
# In our own runs it is the student's average; where they have a teacher too, that is a frozen one of another architecture.
OWN_CONTAINER_KEYS = ("average", *CONTAINER_KEYS)

RANK_SHARD = re.compile(r"\.rank_\d+\.pth$")
RANK_SHARD_HINT = "use `eval/training_*/teacher_checkpoint.pth` of the same run, which holds the whole teacher"


@dataclass(frozen=True)
class TensorFile:
    """What a checkpoint file holds.

    Args:
        tensors: by key as in the file.
        metadata: what dino-extract wrote about them, or None for a file that others made.
        container: the entry of the .pth file that held the tensors, such as `teacher`, or None.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] | None = None
    container: str | None = None


def read_tensor_file(path: Path) -> TensorFile:
    """Tensors of a .safetensors or .pth file; the content decides which it is, not the suffix.

    Raises:
        WeightsError: the file is missing, damaged, one rank's shard of a training run, or holds something else than tensors.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"`{path}` cannot be read: {error.strerror}") from error
    # A safetensors file starts with the length of its JSON header and `{`; torch writes a zip archive or a bare pickle.
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_pickle(path)
    raise WeightsError(
        f"`{path}` is neither a safetensors file nor a PyTorch checkpoint", hint="the file may be damaged or only partly copied"
    )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of tensors, independent of their order."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors, and what dino-extract says about them, so that the file is there whole or not at all.

    Args:
        path: of the file, replaced in one step.
        tensors: of any type and device.
        metadata: goes into the header as JSON; a digest of the tensors is added to it.

    Raises:
        WeightsError: the folder cannot be written or the disk is full.
    """
    header = {"format": "pt"}
    if metadata is not None:
        said = {"format": METADATA_FORMAT, **metadata, "tensors_sha256": tensors_sha256(tensors)}
        header[METADATA_KEY] = json.dumps(said, sort_keys=True)
    # Tensors that share memory, such as the thirds of a fused projection, are refused by the library.
    separate = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    seen: set[int] = set()
    for key, tensor in separate.items():
        if tensor.untyped_storage().data_ptr() in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            separate[key] = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
    with _replacing(path) as draft:
        save_file(separate, draft, metadata=header)
        _sort_metadata(draft)


def _sort_metadata(path: str) -> None:
    """The library writes metadata in random order, and the same weights would be files with different hashes."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size, "in another order it takes the same room"
        file.seek(8)
        file.write(text)


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as the official .pth files have them, so that the file is there whole or not at all.

    Raises:
        WeightsError: the folder cannot be written or the disk is full.
    """
    with _replacing(path) as draft:
        torch.save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, draft)


@contextmanager
def _replacing(path: Path) -> Iterator[str]:
    failures = (SafetensorError, RuntimeError)  # torch reports a full disk as RuntimeError
    hint = "check permissions and free space of the folder"
    with writing(path, "file", error=WeightsError, hint=hint):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path, "file", overwrite=True, also=failures, error=WeightsError, hint=hint) as draft:
        yield draft


def _read_safetensors(path: Path) -> TensorFile:
    check_safetensors_header(path)
    try:
        with _utf8_path(path) as name, safe_open(name, "pt") as file:
            said = (file.metadata() or {}).get(METADATA_KEY)
            # Cloned, because the library maps the file into memory: a file that shrinks later would kill the process.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"`{path}` is a damaged safetensors file: {error}") from error
    return TensorFile(tensors, None if said is None else _read_metadata(path, said))


@contextmanager
def _utf8_path(path: Path) -> Iterator[str]:
    """A name of the file that is UTF-8, which the libraries insist on: its own, or that of the open file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)


def check_safetensors_header(path: Path) -> None:
    """Check the size of a safetensors header before the library parses it.

    Raises:
        WeightsError: the header is larger than any checkpoint's, or is not JSON.
    """
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER_BYTES:
            raise WeightsError(f"`{path}` has a header of {length:,} bytes, expected at most {MAX_HEADER_BYTES:,}")
        header = file.read(length)
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"`{path}` is a damaged safetensors file: its header is not JSON") from error
    if not isinstance(entries, dict) or len(entries) > MAX_TENSORS:
        raise WeightsError(f"`{path}` has {len(entries):,} tensors, expected at most {MAX_TENSORS:,}")


def _read_metadata(path: Path, said: str) -> dict[str, Any]:
    try:
        metadata = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"`{path}` has damaged `{METADATA_KEY}` metadata: {error}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != METADATA_FORMAT:
        version = metadata.get("format") if isinstance(metadata, dict) else metadata
        raise WeightsError(
            f"`{path}` has `{METADATA_KEY}` metadata of format {version!r}, expected {METADATA_FORMAT}",
            hint="a newer dino-extract wrote it",
        )
    return metadata


def _read_pickle(path: Path) -> TensorFile:
    mapped = zipfile.is_zipfile(path)  # bare pickles, from torch before 1.6, cannot be mapped
    try:
        with _utf8_path(path) as name:
            loaded = torch.load(name, map_location="cpu", weights_only=True, mmap=mapped)
    # A hostile pickle makes the restricted unpickler fail in any way it likes; every one of them means the same to the user.
    except Exception as error:
        if RANK_SHARD.search(path.name) or "ShardedTensor" in str(error):
            raise _rank_shard_error(path) from error
        reason = (
            "it holds objects other than tensors, which could run code"
            if "weights_only" in str(error).lower()
            else str(error).splitlines()[0]
        )
        raise WeightsError(
            f"`{path}` cannot be read as a PyTorch checkpoint: {reason}", hint="save the `state_dict()` alone, or convert it to safetensors"
        ) from error
    tensors, container = _unwrapped(path, loaded)
    return TensorFile(tensors, container=container)


def _unwrapped(path: Path, loaded: Any) -> tuple[dict[str, Tensor], str | None]:
    """The tensors in a loaded .pth file, and the name of the entry that holds them."""
    container = None
    while isinstance(loaded, Mapping) and (inner := _container_key(loaded)) is not None:
        container, loaded = inner, loaded[inner]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"`{path}` holds a {type(loaded).__name__}, expected a dictionary of tensors")
    if RANK_SHARD.search(path.name) or any("flat_param" in str(key) for key in loaded):
        raise _rank_shard_error(path)
    if others := [str(key) for key, value in loaded.items() if not (isinstance(key, str) and isinstance(value, Tensor))]:
        raise WeightsError(f"`{path}` holds entries that are not tensors: {', '.join(others[:5])} ({len(others)} in all)")
    if stretched := [key for key, value in loaded.items() if _claims_more_than_stored(value)]:
        raise WeightsError(f"`{path}` has tensors larger than what is stored of them: {', '.join(stretched[:5])} ({len(stretched)} in all)")
    return {key: value.detach().clone() for key, value in loaded.items()}, container


def _container_key(loaded: Mapping[Any, Any]) -> str | None:
    keys = OWN_CONTAINER_KEYS if "student" in loaded else CONTAINER_KEYS  # elsewhere an average may be of anything
    return next((key for key in keys if isinstance(loaded.get(key), Mapping)), None)


def _claims_more_than_stored(tensor: Tensor) -> bool:
    # A tensor with stride 0 can claim any size, and a copy of it would fill the memory.
    return tensor.layout is torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes()


def _rank_shard_error(path: Path) -> WeightsError:
    return WeightsError(f"`{path}` holds one rank's shard of a distributed training run, not a whole model", hint=RANK_SHARD_HINT)
