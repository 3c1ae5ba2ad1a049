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
    "Encoder": ("dino_extract.embedding.encoder", "Encoder"),
    "attention_maps": ("dino_extract.pictures.attention", "attention_maps"),
    "classify": ("dino_extract.analysis.probes.probe", "classify"),
    "cluster": ("dino_extract.analysis.cluster", "cluster"),
    "curate": ("dino_extract.analysis.cluster", "curate"),
    "dedup": ("dino_extract.analysis.dedup", "dedup"),
    "embed": ("dino_extract.embedding.pipeline", "embed"),
    "embed_like": ("dino_extract.embedding.pipeline", "embed_like"),
    "export": ("dino_extract.analysis.export", "export"),
    "join": ("dino_extract.store", "join_stores"),
    "knn": ("dino_extract.analysis.probes.knn", "knn"),
    "leaks": ("dino_extract.analysis.dedup", "leaks"),
    "linear": ("dino_extract.analysis.probes.linear", "linear"),
    "linear_dense": ("dino_extract.analysis.probes.linear_dense", "linear_dense"),
    "load_backbone": ("dino_extract.weights", "load_backbone"),
    "match_patches": ("dino_extract.pictures.match", "match_patches"),
    "open": ("dino_extract.store", "open_store"),
    "outliers": ("dino_extract.analysis.outliers", "outliers"),
    "pca": ("dino_extract.pictures.pca", "pca"),
    "report": ("dino_extract.pictures.report", "report"),
    "search": ("dino_extract.analysis.search", "search"),
    "verify": ("dino_extract.embedding.verification", "verify"),
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module `dino_extract` has no attribute `{name}`")
    module, attribute = _EXPORTS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
