"""From what the user asks for to the weights file to read, downloading it where it is missing. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dino_extract.errors import WeightsError
from dino_extract.weights.cache import UnreachableError, fetch
from dino_extract.weights.checksum import file_sha256
from dino_extract.weights.download import CONNECT_TIMEOUT_S, DownloadProgress
from dino_extract.weights.locate import cached_path, is_offline, missing_error, places, present_places
from dino_extract.weights.registry import DEFAULT_MODEL, Checkpoint, find_checkpoint, is_timm


@dataclass(frozen=True)
class WeightsFile:
    """A checked file with the weights of a model of the table.

    Args:
        source: where it was found, for the user.
        sha256: of the file; None for our own conversion in the cache, whose header tells the hash of the released file.
    """

    path: Path
    source: str
    sha256: str | None


def ensure_available(
    model: str | None = None,
    *,
    weights: str | Path | None = None,
    random_weights: int | None = None,
    offline: bool = False,
    progress: DownloadProgress | None = None,
    waiting: Callable[[], None] | None = None,
) -> None:
    """Download the weights that `load` with the same arguments will need, or fail, before anybody waits for torch to be imported.

    What a file holds is not checked here, and neither are timm's models.

    Raises:
        WeightsError: there is no such model or file, or the weights are missing and cannot be downloaded.
    """
    if weights is not None:
        if not Path(weights).expanduser().exists():
            raise WeightsError(f"there is no file `{weights}`")
        return
    if model is not None and is_timm(model):
        return
    checkpoint = find_checkpoint(model or DEFAULT_MODEL)
    if random_weights is None and not present_places(checkpoint):
        resolve_weights(checkpoint, offline=offline, progress=progress, waiting=waiting)


def resolve_weights(
    checkpoint: Checkpoint,
    *,
    offline: bool = False,
    progress: DownloadProgress | None = None,
    waiting: Callable[[], None] | None = None,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> WeightsFile:
    """The weights of a model of the table: those on this machine, else downloaded into the cache.

    A file whose hash is not the released one is passed over, and named if nothing else is found.

    Args:
        checkpoint: a model of the table.
        offline: never download; `DINO_EXTRACT_OFFLINE` does the same.
        progress: called with the bytes there and in all while downloading.
        waiting: called once if another process is downloading the same weights.
        connect_timeout_s: after which a server counts as unreachable.

    Raises:
        WeightsError: they are not on this machine and cannot be downloaded; the message says where they were looked for.
    """
    found, unusable = weights_here(checkpoint)
    if found is not None:
        return found
    if checkpoint.url is None:
        raise missing_error(checkpoint, "there is no place to download them from", unusable)
    if is_offline(offline):
        raise missing_error(checkpoint, "downloading is off", unusable)
    try:
        fetch(checkpoint, progress=progress, waiting=waiting, connect_timeout_s=connect_timeout_s)
    except UnreachableError as error:
        raise missing_error(checkpoint, error.message, unusable) from error
    except WeightsError as error:
        reason = f"could not be downloaded ({'; '.join(filter(None, (error.message, error.hint)))})"
        raise missing_error(checkpoint, reason, unusable) from error
    return WeightsFile(cached_path(checkpoint.name), "cache", None)


def weights_here(checkpoint: Checkpoint) -> tuple[WeightsFile | None, list[str]]:
    """The weights of a model that are on this machine, or None, and which files before them cannot be used and why."""
    unusable: list[str] = []
    for place in places(checkpoint):
        if not os.path.isfile(place.path):
            continue
        if place.kind == "cache":
            return WeightsFile(place.path, "cache", None), unusable
        sha256 = file_sha256(place.path)
        if not place.sha256 or sha256 in place.sha256:
            return WeightsFile(place.path, place.kind, sha256), unusable
        unusable.append(f"`{place.path}` has SHA-256 {sha256}, expected {' or '.join(place.sha256)}")
    return None, unusable
