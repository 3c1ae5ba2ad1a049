"""The table of models: canonical names, aliases, files with their SHA-256, licences and architectures. Needs no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from dino_extract.config import DEFAULT_SIZE
from dino_extract.errors import WeightsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TIMM_PREFIX = "timm/"
DEFAULT_MODEL = "vits14"


@dataclass(frozen=True)
class Mirror:
    """The same weights in a Hugging Face repository, in another key layout.

    Args:
        sha256: of the file, or None where it is not known.
        size_bytes: of the file, or None where it is not known.
    """

    repository: str
    file: str
    sha256: str | None = None
    size_bytes: int | None = None

    @property
    def url(self) -> str:
        """Where the file is."""
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.file}"


@dataclass(frozen=True)
class Checkpoint:
    """One model of the table.

    Args:
        architecture: fields of `BackboneConfig`.
        parameters: number of parameters, mask token included.
        url: where the released file is, or None for a model that is not released.
        size: side in pixels of the images that the model is best given.
        bundled_file: file in the `weights/` folder that comes with dino-extract, or None.
        sha256: of the released or bundled file.
        size_bytes: of the same file.
    """

    name: str
    aliases: tuple[str, ...]
    architecture: Mapping[str, Any]
    parameters: int
    licence: str
    size: int = DEFAULT_SIZE
    url: str | None = None
    bundled_file: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    mirrors: tuple[Mirror, ...] = ()

    @property
    def released_file(self) -> str | None:
        """Name of the released file, as the torch hub cache has it."""
        return self.url.rsplit("/", 1)[-1] if self.url else None

    @property
    def known_sha256(self) -> tuple[str, ...]:
        """SHA-256 of every file that is known to hold these weights, the released one first."""
        return tuple(sha256 for sha256 in (self.sha256, *(mirror.sha256 for mirror in self.mirrors)) if sha256)


def weights_folder() -> Path:
    """The folder of the table and the bundled weights: inside the installed package, else `weights/` of the repository."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_weights"
    return installed if installed.is_dir() else package.parent / "weights"


def checkpoints() -> dict[str, Checkpoint]:
    """All models of the table by canonical name, in its order."""
    return read_table(os.environ.get("DINO_EXTRACT_WEIGHTS_URL"))


def find_checkpoint(name: str) -> Checkpoint:
    """The model that a name or alias means; case, `_` and `-` do not matter.

    Raises:
        WeightsError: no model has that name.
    """
    names = {_normalised(known): checkpoint for checkpoint in checkpoints().values() for known in (checkpoint.name, *checkpoint.aliases)}
    found = names.get(_normalised(name))
    if found is not None:
        return found
    close = get_close_matches(_normalised(name), [_normalised(known) for known in checkpoints()], n=1)
    hint = (
        f"did you mean `{names[close[0]].name}`?"
        if close
        else "any timm model works as `--model timm/NAME`, any checkpoint file as `--weights PATH`"
    )
    raise WeightsError(f"there is no model `{name}` (there are {', '.join(checkpoints())})", hint=hint)


def is_timm(name: str) -> bool:
    """Whether a model name asks timm for the model."""
    return name.startswith(TIMM_PREFIX)


def _normalised(name: str) -> str:
    return name.strip().lower().replace("_", "-")


@cache
def read_table(other_base_url: str | None) -> dict[str, Checkpoint]:
    """The table; a site with its own copy of the released files names it with `other_base_url`, the hashes stay the same."""
    table = tomllib.loads((weights_folder() / "checkpoints.toml").read_text(encoding="utf-8"))
    base_url = (other_base_url or table["base_url"]).rstrip("/")
    return {name: _read_entry(name, entry, base_url) for name, entry in table["models"].items()}


def _read_entry(name: str, entry: Mapping[str, Any], base_url: str) -> Checkpoint:
    return Checkpoint(
        name=name,
        aliases=tuple(entry.get("aliases", ())),
        architecture=entry["architecture"],
        parameters=entry["parameters"],
        licence=entry["licence"],
        size=entry.get("size", DEFAULT_SIZE),
        url=f"{base_url}/{entry['url']}" if "url" in entry else None,
        bundled_file=entry.get("file"),
        sha256=entry.get("sha256"),
        size_bytes=entry.get("bytes"),
        mirrors=tuple(
            Mirror(mirror["repository"], mirror["file"], mirror.get("sha256"), mirror.get("bytes")) for mirror in entry.get("mirrors", ())
        ),
    )
