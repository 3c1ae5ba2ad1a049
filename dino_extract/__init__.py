"""dino-extract: DINOv2 embeddings of image folders in crash-safe HDF5, and fine-tuning on your own images.

Names are imported when they are first used, so that `import dino_extract` and `dino-extract --help` load neither torch nor h5py.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> module and name where it is defined
_EXPORTS = {
    "DinoExtractError": ("dino_extract.errors", "DinoExtractError"),
    "embed": ("dino_extract.embedding", "embed"),
    "embed_like": ("dino_extract.embedding", "embed_like"),
    "load_backbone": ("dino_extract.weights", "load_backbone"),
    "open": ("dino_extract.store", "open_store"),
    "verify": ("dino_extract.verification", "verify"),
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module `dino_extract` has no attribute `{name}`")
    module, attribute = _EXPORTS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
