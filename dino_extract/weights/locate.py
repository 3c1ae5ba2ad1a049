"""Where the weights of a model are on this machine: bundled, our cache, the repository, the torch hub and Hugging Face caches.

Needs no torch, so that a missing model is reported at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal

import platformdirs

from dino_extract.errors import WeightsError
from dino_extract.weights.registry import Checkpoint, Mirror, weights_folder

PlaceKind = Literal["bundled", "cache", "weights folder", "torch hub", "hugging face"]

BLOB_NAME = re.compile(r"[0-9a-f]{64}")  # Hugging Face names large files by their SHA-256


@dataclass(frozen=True)
class Place:
    """One place where the weights of a model may be.

    Args:
        sha256: hashes of which the file must have one; empty where none is known, and for our own conversions, whose header
            tells the hash of the file they were made from and a digest of the tensors.
    """

    kind: PlaceKind
    path: Path
    sha256: tuple[str, ...] = ()


def cache_dir() -> Path:
    """The folder of downloaded weights, `DINO_EXTRACT_CACHE` or the one that the system provides for caches."""
    chosen = os.environ.get("DINO_EXTRACT_CACHE")
    return (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("dino-extract")) / "weights"


def cached_path(name: str) -> Path:
    """Where our own conversion of the weights with this canonical name is or would be."""
    return cache_dir() / f"{name}.safetensors"


def is_offline(asked: bool = False) -> bool:
    """Whether nothing may be downloaded: asked for, or `DINO_EXTRACT_OFFLINE` is set to anything but 0."""
    return asked or os.environ.get("DINO_EXTRACT_OFFLINE", "0") not in ("", "0")


def places(checkpoint: Checkpoint) -> Iterator[Place]:
    """All places where the weights of a model are looked for, in order, whether they are there or not."""
    released = (checkpoint.sha256,) if checkpoint.sha256 else ()
    if checkpoint.bundled_file:
        yield Place("bundled", weights_folder() / checkpoint.bundled_file, released)
    yield Place("cache", cached_path(checkpoint.name))
    if checkpoint.released_file:
        yield Place("weights folder", weights_folder() / checkpoint.released_file, released)
        yield Place("torch hub", _torch_hub_folder() / checkpoint.released_file, released)
    for mirror in checkpoint.mirrors:
        yield _hugging_face_place(mirror)


def present_places(checkpoint: Checkpoint) -> list[Place]:
    """The places of a model where there is a file that can be seen; in a folder that is closed to this user there is none."""
    return [place for place in places(checkpoint) if os.path.isfile(place.path)]  # `Path.is_file` would raise there


def missing_error(checkpoint: Checkpoint, reason: str, unusable: list[str] | None = None) -> WeightsError:
    """The error that says which file is missing, how to know it, and where it was looked for.

    Args:
        checkpoint: a model of the table.
        reason: why it was not downloaded.
        unusable: what was found and why it cannot be used.
    """
    looked = [f"  looked in: {place.kind}, `{place.path}`" for place in places(checkpoint)]
    found = [f"  not usable: {text}" for text in unusable or []]
    if checkpoint.url is None:
        return WeightsError(
            "\n".join([f"there are no weights for `{checkpoint.name}`", *looked, *found]),
            hint="give a file with `--weights PATH`, or use untrained weights with `--random-weights SEED`",
        )
    facts = [
        f"  file: `{checkpoint.released_file}`, {checkpoint.size_bytes:,} bytes",
        f"  SHA-256: {checkpoint.sha256}",
        f"  from: {checkpoint.url}",
    ]
    return WeightsError(
        "\n".join([f"the weights of `{checkpoint.name}` are not on this machine and {reason}", *facts, *looked, *found]),
        hint=f"`--model tiny` needs no download, for trying things out\n{copy_hint(checkpoint)}",
    )


def released_facts(checkpoint: Checkpoint) -> str:
    """The released file of a model, how to know it, and its address, as part of a message."""
    return f"`{checkpoint.released_file}`, {checkpoint.size_bytes:,} bytes, SHA-256 {checkpoint.sha256}, from {checkpoint.url}"


def copy_hint(checkpoint: Checkpoint) -> str:
    """How the released file of a model gets to a machine without a network."""
    return (
        f"`dino-extract weights pull {checkpoint.name}` downloads them where there is a network\n"
        f"or copy that file to `{_torch_hub_folder() / str(checkpoint.released_file)}`, or name a copy with `--weights PATH`"
    )


def _torch_hub_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("TORCH_HOME", cache / "torch")).expanduser() / "hub" / "checkpoints"


def _hugging_face_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    home = Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()


def _hugging_face_place(mirror: Mirror) -> Place:
    """The file of the revision that `main` points to, else of any revision that is there."""
    repository = _hugging_face_folder() / f"models--{mirror.repository.replace('/', '--')}"
    main, snapshots = repository / "refs" / "main", repository / "snapshots"
    revision = main.read_text(encoding="utf-8").strip() if os.path.isfile(main) else "*"
    path = snapshots / revision / mirror.file
    if not os.path.isfile(path):
        path = snapshots / min(glob(f"*/{mirror.file}", root_dir=snapshots), default=path)
    if mirror.sha256:
        return Place("hugging face", path, (mirror.sha256,))
    blob = path.resolve().name
    return Place("hugging face", path, (blob,) if BLOB_NAME.fullmatch(blob) else ())
