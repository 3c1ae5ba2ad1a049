"""Models and their weights: the table, finding and downloading, every checkpoint layout in and out, loading.

Names are imported when they are first used: the table and the search for a file need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_extract.weights.checkpoint import BackboneCheckpoint, architecture_name, backbone_config, read_checkpoint, save_checkpoint
    from dino_extract.weights.loading import LoadedBackbone, build, load, load_backbone
    from dino_extract.weights.locate import cache_dir
    from dino_extract.weights.registry import DEFAULT_MODEL, Checkpoint, checkpoints, find_checkpoint, is_timm, weights_folder
    from dino_extract.weights.resolve import WeightsFile, ensure_available, resolve_weights
    from dino_extract.weights.timm_backbone import TimmBackbone
    from dino_extract.weights.untrained import RANDOM_WEIGHTS_WARNING, untrained_backbone

# module -> the names it defines
_EXPORTS = {
    "checkpoint": ("BackboneCheckpoint", "architecture_name", "backbone_config", "read_checkpoint", "save_checkpoint"),
    "loading": ("LoadedBackbone", "build", "load", "load_backbone"),
    "locate": ("cache_dir",),
    "registry": ("DEFAULT_MODEL", "Checkpoint", "checkpoints", "find_checkpoint", "is_timm", "weights_folder"),
    "resolve": ("WeightsFile", "ensure_available", "resolve_weights"),
    "timm_backbone": ("TimmBackbone",),
    "untrained": ("RANDOM_WEIGHTS_WARNING", "untrained_backbone"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "DEFAULT_MODEL",
    "RANDOM_WEIGHTS_WARNING",
    "BackboneCheckpoint",
    "Checkpoint",
    "LoadedBackbone",
    "TimmBackbone",
    "WeightsFile",
    "architecture_name",
    "backbone_config",
    "build",
    "cache_dir",
    "checkpoints",
    "ensure_available",
    "find_checkpoint",
    "is_timm",
    "load",
    "load_backbone",
    "read_checkpoint",
    "resolve_weights",
    "save_checkpoint",
    "untrained_backbone",
    "weights_folder",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module `dino_extract.weights` has no attribute `{name}`")
    return getattr(import_module(f"dino_extract.weights.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
