"""Our cache of released weights: fetched or imported, checked, and kept as safetensors in official keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dino_extract.errors import WeightsError
from dino_extract.names import quoted
from dino_extract.weights.checksum import file_sha256
from dino_extract.weights.download import CONNECT_TIMEOUT_S, DownloadProgress, download, locked, unreachable
from dino_extract.weights.locate import cache_dir, cached_path, copy_hint, released_facts
from dino_extract.weights.registry import Checkpoint


class UnreachableError(WeightsError):
    """No server that has the weights can be reached from here."""


class Source(NamedTuple):
    """A file on a server: where, and how to know it."""

    url: str
    sha256: str
    size_bytes: int


def fetch(
    checkpoint: Checkpoint,
    *,
    overwrite: bool = False,
    progress: DownloadProgress | None = None,
    waiting: Callable[[], None] | None = None,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> Path:
    """Download the released weights of a model into the cache and give back their path; a copy already there is kept.

    Args:
        checkpoint: a model of the table.
        overwrite: replace the copy in the cache, once the new one is whole.
        progress: called with the bytes there and in all while downloading.
        waiting: called once if another process is downloading the same weights.
        connect_timeout_s: after which a server counts as unreachable.

    Raises:
        UnreachableError: there is no way to any server that has them.
        WeightsError: the model is not released, or no server gives the right file.
    """
    path = cached_path(checkpoint.name)
    sources = sources_of(checkpoint)
    if not sources:
        raise WeightsError(f"`{checkpoint.name}` is not a released model, so there is nothing to download")
    with locked(path, waiting):
        if path.is_file() and not overwrite:
            return path
        reasons = unreachable([source.url for source in sources], connect_timeout_s)
        reachable = [source for source in sources if source.url not in reasons]
        if not reachable:
            raise UnreachableError(
                f"no server with the weights of `{checkpoint.name}` can be reached ({'; '.join(dict.fromkeys(reasons.values()))})",
                hint=f"the file is {released_facts(checkpoint)}\n{copy_hint(checkpoint)}",
            )
        return _fetch_from_first(reachable, checkpoint, progress)


def add_file(path: Path, checkpoint: Checkpoint) -> Path:
    """Put a file that the user has into the cache as the weights of a released model, and give back its path there.

    Raises:
        WeightsError: the file is not known to hold exactly these weights.
    """
    sha256 = file_sha256(path)
    if sha256 not in checkpoint.known_sha256:
        known = ", ".join(checkpoint.known_sha256) or "none known"
        raise WeightsError(
            f"`{path}` has SHA-256 {sha256}, which is not that of a released file of `{checkpoint.name}` ({known})",
            hint=f"your own weights need no import: `--weights {quoted(str(path))}`; a file that `weights pull` printed elsewhere "
            f"is copied to `{cached_path(checkpoint.name)}`",
        )
    with locked(cached_path(checkpoint.name)):
        return store(path, checkpoint, sha256=sha256, source=str(path.name))


def store(path: Path, checkpoint: Checkpoint, *, sha256: str, source: str) -> Path:
    """Convert a checked file of a released model into the cache; no pickle is kept.

    Args:
        path: a file of any layout.
        checkpoint: the model it must hold.
        sha256: of the file at `path`.
        source: where it came from, for the record.

    Raises:
        WeightsError: the file does not hold this model.
    """
    # Converting needs torch, which takes longer to import than all that comes before.
    from dino_extract.weights.checkpoint import read_checkpoint, save_checkpoint

    converted = read_checkpoint(path, checkpoint)
    target = cached_path(checkpoint.name)
    save_checkpoint(
        target,
        converted.tensors,
        converted.config,
        name=checkpoint.name,
        licence=checkpoint.licence,
        record={"source_sha256": sha256, "source": source, "source_layout": converted.layout, "notes": list(converted.notes)},
    )
    return target


def _fetch_from_first(sources: Sequence[Source], checkpoint: Checkpoint, progress: DownloadProgress | None) -> Path:
    """Fetch from the first source that works; where none does, its error is that of the first."""
    first, *others = sources
    try:
        return _fetch_from(first, checkpoint, progress)
    except WeightsError:
        if others:
            with suppress(WeightsError):
                return _fetch_from_first(others, checkpoint, progress)
        raise


def _fetch_from(source: Source, checkpoint: Checkpoint, progress: DownloadProgress | None) -> Path:
    raw = cache_dir() / f"{checkpoint.name}.{source.sha256[:8]}.download"
    download(source.url, raw, sha256=source.sha256, size_bytes=source.size_bytes, extra_bytes=source.size_bytes, progress=progress)
    try:
        return store(raw, checkpoint, sha256=source.sha256, source=source.url)
    finally:
        raw.unlink()


def sources_of(checkpoint: Checkpoint) -> list[Source]:
    """Every file that can be fetched and checked, the released one first."""
    files = [(checkpoint.url, checkpoint.sha256, checkpoint.size_bytes)]
    files += [(mirror.url, mirror.sha256, mirror.size_bytes) for mirror in checkpoint.mirrors]
    return [Source(url, sha256, size_bytes) for url, sha256, size_bytes in files if url and sha256 and size_bytes]
