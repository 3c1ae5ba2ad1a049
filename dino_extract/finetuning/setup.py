"""From a configuration to what a run needs: complete numbers, images, networks, and the monitor."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.engine import plan
from dino_extract.errors import ConfigError
from dino_extract.finetuning import distributed
from dino_extract.finetuning.config import CropConfig, FinetuneConfig
from dino_extract.finetuning.data import Order, Share
from dino_extract.finetuning.monitor import Labelled, Monitor, rows_to_watch, split_labelled
from dino_extract.finetuning.presets import check, with_lengths
from dino_extract.finetuning.student_teacher import BackboneWithHeads, StudentTeacher
from dino_extract.images.finding import find_images
from dino_extract.images.loader import default_workers
from dino_extract.images.manifest import Manifest
from dino_extract.images.preprocess import Preprocess
from dino_extract.weights import backbone_config, find_checkpoint
from dino_extract.weights.loading import load

Log = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """The backbone that a run starts from.

    Args:
        config: its shape; `drop_path` is the student's.
        weights: in official keys; None for random ones.
        name: of the model.
        licence: under which the result may be used.
        weights_sha256: of the weights; empty for random ones.
    """

    config: BackboneConfig
    weights: dict[str, Tensor] | None
    name: str
    licence: str
    weights_sha256: str


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:1` means; with several processes each takes its own GPU.

    Raises:
        ConfigError: as `engine.choose_device`.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank() % torch.cuda.device_count()}"
    device = plan.choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def share_of_this_process(config: FinetuneConfig) -> Share:
    """What this process takes of every global batch."""
    return Share(config.batch, config.accumulation, distributed.rank(), distributed.world_size())


def decoders_of_this_process(config: FinetuneConfig) -> int:
    """How many decoder processes this process starts; those of one machine share its processors."""
    return config.workers or default_workers(distributed.local_world_size())


def completed(config: FinetuneConfig, order: Order, device: torch.device) -> FinetuneConfig:
    """The configuration with every None that means "a share of the run" as a number, every `auto` resolved, and `~` as the home folder.

    Raises:
        ConfigError: values contradict each other.
    """
    steps = config.steps if config.steps is not None else max(1, round(config.epochs * order.steps_per_epoch))
    config = with_lengths(config, steps)
    check(config)
    dtype = plan.choose_dtype(config.dtype, device)
    if dtype == "float32":
        plan.forbid_tf32()
    return replace(config, output=os.path.expanduser(config.output), dtype=dtype)


def load_start(config: FinetuneConfig, log: Log) -> Start:
    """The backbone that the run starts from; logs how many weights were loaded.

    Raises:
        ConfigError: the model is not one that can be trained here.
        WeightsError: weights are missing, damaged, or do not match the model.
    """
    if config.from_scratch:
        shape = replace(backbone_config(find_checkpoint(config.model)), drop_path=config.drop_path_rate, layer_scale_init=config.layerscale)
        log(f"starting `{config.model}` from random weights, seed {config.seed}")
        return Start(shape, None, config.model, "as you choose", "")
    backbone, name, licence, sha256 = _load_backbone(config.model if config.weights is None else None, config, log, config.weights)
    return Start(replace(backbone.config, drop_path=config.drop_path_rate), backbone.state_dict(), name, licence, sha256)


def check_crops(crops: CropConfig, patch_size: int) -> None:
    """Refuse crops that are not made of whole patches.

    Raises:
        ConfigError: with the nearest sizes.
    """
    sides = {"global": crops.global_crops_size} | ({"local": crops.local_crops_size} if crops.local_crops_number else {})
    for kind, side in sides.items():
        if side % patch_size:
            below, above = side // patch_size * patch_size, -(-side // patch_size) * patch_size
            nearest = " or ".join(f"`--{kind}-size {near}`" for near in (below, above) if near)
            raise ConfigError(
                f"`crops.{kind}_crops_size` must be a multiple of the patch size {patch_size}, got {side}", hint=f"for example {nearest}"
            )


def load_teacher(config: FinetuneConfig, log: Log) -> tuple[BackboneWithHeads, str]:
    """The frozen network to distil from, with heads that still have to learn, and the SHA-256 of its weights.

    Raises:
        WeightsError: its weights are missing, damaged, or do not match.
    """
    assert config.distill is not None, "there is a teacher only in distillation"
    is_path = os.path.exists(os.path.expanduser(config.distill))
    backbone, _, _, sha256 = _load_backbone(None if is_path else config.distill, config, log, config.distill if is_path else None)
    network = BackboneWithHeads(replace(backbone.config, drop_path=0.0), config.objective)
    network.backbone.load_state_dict(backbone.state_dict())
    return network, sha256


def build_models(config: FinetuneConfig, start: Start, teacher: BackboneWithHeads | None) -> StudentTeacher:
    """Student and average with the start weights; heads, and backbones from scratch, are random by the seed."""
    torch.manual_seed(config.seed)
    models = StudentTeacher(start.config, config.objective, teacher)
    return models if start.weights is None else models.load_backbone(start.weights)


def build_monitor(config: FinetuneConfig, start: DinoVisionTransformer, manifest: Manifest) -> Monitor:
    """The monitor of the run.

    Raises:
        ConfigError: the labelled images have no class folders.
    """
    options = evaluation_preprocess(config, start.patch_size)
    labelled: Labelled | None = None
    if config.eval is not None:
        labelled = split_labelled(find_images([config.eval]), config.monitor.eval_images)
    return Monitor(
        start,
        manifest,
        rows_to_watch(len(manifest), config.monitor.images),
        options,
        labelled=labelled,
        workers=decoders_of_this_process(config),
        collapse_ratio=config.monitor.collapse_ratio,
    )


def evaluation_preprocess(config: FinetuneConfig, patch_size: int) -> Preprocess:
    """How images are preprocessed for the monitor: the official transform at the size of the global crops."""
    side = config.crops.global_crops_size
    return Preprocess("crop", side, side, patch_size, fast_decode=True)


def _load_backbone(model: str | None, config: FinetuneConfig, log: Log, weights: str | None) -> tuple[DinoVisionTransformer, str, str, str]:
    found = load(model, weights=weights, offline=config.offline)
    if not isinstance(found.module, DinoVisionTransformer):
        raise ConfigError(f"`{found.name}` is a timm model; only DINOv2 backbones can be trained", hint="for example `--model vits14`")
    count = len(found.module.state_dict())
    log(f"loaded {count} of {count} weights of `{found.name}` ({found.weights_source})")
    log("heads continue from that run" if config.keep_heads else "heads start from random weights")
    for note in found.notes:
        log(note)
    return found.module, found.name, found.licence, found.weights_sha256
