"""A backbone with its weights, ready for inference, and the record of which weights they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dino_extract.backbone import Backbone, DinoVisionTransformer
from dino_extract.config import DEFAULT_SIZE
from dino_extract.errors import ConfigError, WeightsError
from dino_extract.weights.checkpoint import BackboneCheckpoint, backbone_config, checkpoint_file, read_checkpoint
from dino_extract.weights.checksum import file_sha256
from dino_extract.weights.download import DownloadProgress
from dino_extract.weights.registry import DEFAULT_MODEL, find_checkpoint, is_timm
from dino_extract.weights.resolve import resolve_weights
from dino_extract.weights.timm_backbone import load_timm
from dino_extract.weights.untrained import untrained_backbone


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone and which weights it has.

    Args:
        module: in eval mode, float32, on the CPU.
        name: canonical model name, such as `vits14` or `timm/vit_tiny_patch16_224`.
        weights_sha256: identifies the weights: SHA-256 of the released file if they came through our cache, of the file read
            otherwise; `random:SEED` for random weights.
        weights_source: where they came from, for the user.
        licence: under which they may be used, `unknown` where nothing says.
        size: side in pixels of the images that the model is best given.
        notes: what was left out or filled in while reading, for the user.
    """

    module: Backbone
    name: str
    weights_sha256: str
    weights_source: str
    licence: str
    size: int = DEFAULT_SIZE
    notes: tuple[str, ...] = ()


def load(
    model: str | None = None,
    *,
    weights: str | Path | None = None,
    random_weights: int | None = None,
    offline: bool = False,
    progress: DownloadProgress | None = None,
    waiting: Callable[[], None] | None = None,
) -> LoadedBackbone:
    """A backbone with its weights and the record of which they are.

    Args:
        model: name or alias from the table, or `timm/NAME`; without it, the architecture is that of the `weights` file, or `vits14`.
        weights: a checkpoint file of any layout, or the folder of a fine-tuning run.
        random_weights: seed of random weights, which are used instead of trained ones.
        offline: never download.
        progress: called with the bytes there and in all while downloading.
        waiting: called once if another process is downloading the same weights.

    Raises:
        ConfigError: both weights and random ones are asked for, or timm's model gives no tokens.
        WeightsError: there is no such model, its weights are missing or damaged, or they are of another model.
    """
    if weights is not None and random_weights is not None:
        raise ConfigError("give either a weights file or random weights, not both")
    path = None if weights is None else Path(weights).expanduser()
    if model is not None and is_timm(model):
        timm = load_timm(model, weights=path, random_weights=random_weights, offline=offline)
        return LoadedBackbone(timm.module, model, timm.weights_sha256, timm.weights_source, timm.licence, timm.module.image_size)
    if path is not None:
        return _load_file(model, path)
    if random_weights is not None:
        return _load_random(model or DEFAULT_MODEL, random_weights)
    checkpoint = find_checkpoint(model or DEFAULT_MODEL)
    file = resolve_weights(checkpoint, offline=offline, progress=progress, waiting=waiting)
    found = read_checkpoint(file.path, checkpoint)
    sha256 = file.sha256 or found.metadata.get("source_sha256")
    if file.sha256 is None and sha256 not in checkpoint.known_sha256:
        raise WeightsError(
            f"`{file.path}` in the cache was not made from a released file of `{checkpoint.name}`",
            hint=f"`dino-extract weights pull --overwrite {checkpoint.name}` replaces it",
        )
    return LoadedBackbone(
        build(found), checkpoint.name, str(sha256), f"{file.source}: {file.path}", checkpoint.licence, checkpoint.size, found.notes
    )


def load_backbone(
    model: str | None = None, *, weights: str | Path | None = None, random_weights: int | None = None, offline: bool = False
) -> Backbone:
    """A backbone as a torch module in eval mode, float32, on the CPU; it maps normalised images (B, 3, H, W) to `Tokens`.

    `load_backbone("vits14")` downloads the released weights once. The other arguments and errors are those of `load`.
    """
    return load(model, weights=weights, random_weights=random_weights, offline=offline).module


def build(checkpoint: BackboneCheckpoint) -> DinoVisionTransformer:
    """The backbone with the weights of a checkpoint, in eval mode, float32."""
    with torch.device("meta"):  # its start values would cost more time than reading the file
        model = DinoVisionTransformer(checkpoint.config)
    model.load_state_dict({key: tensor.float() for key, tensor in checkpoint.tensors.items()}, assign=True)
    return model.eval()


def _load_file(model: str | None, path: Path) -> LoadedBackbone:
    expected = find_checkpoint(model) if model is not None else None
    path = checkpoint_file(path)
    found = read_checkpoint(path, expected)
    name = expected.name if expected is not None else found.name
    return LoadedBackbone(
        build(found),
        name,
        file_sha256(path),
        f"{found.layout} checkpoint: {path}",
        str(found.metadata.get("licence", "unknown")),
        found.size,
        found.notes,
    )


def _load_random(model: str, seed: int) -> LoadedBackbone:
    checkpoint = find_checkpoint(model)
    module = untrained_backbone(backbone_config(checkpoint), seed)
    return LoadedBackbone(module, checkpoint.name, f"random:{seed}", f"random weights, seed {seed}", "none", checkpoint.size)
