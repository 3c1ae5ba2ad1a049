"""Training steps of the official implementation in fp32 on a CPU, from `train_step_*.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from torch import Tensor

from dino_extract.backbone import BackboneConfig
from dino_extract.finetuning.config import HeadConfig, ObjectiveConfig, OptimConfig
from dino_extract.finetuning.distributed import ProcessGroup
from dino_extract.finetuning.schedules import ScheduleValues
from dino_extract.finetuning.step import TrainingStep
from dino_extract.finetuning.student_teacher import BackboneWithHeads, CropBatch, StudentTeacher

GOLDEN = Path(__file__).parents[1] / "golden"
TRAIN_STEPS = ["centering_shared_head", "sinkhorn_separate_heads"]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The spec and the tensors of a golden file."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["spec"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def training_step(
    spec: dict[str, Any],
    tensors: dict[str, Tensor],
    group: ProcessGroup = None,
    parallel: Literal["ddp", "fsdp"] = "ddp",
    *,
    distils: bool = False,
) -> TrainingStep:
    """Our training step with the shape and the start weights of a golden file; to distil, from its teacher, which then stays as it is."""
    shape, head, optimizer = spec["backbone"], spec["head"], spec["optimizer"]
    backbone = BackboneConfig(
        embed_dim=shape["embed_dim"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        ffn="swiglu" if "swiglu" in shape["ffn_layer"] else "mlp",
        num_registers=shape["num_register_tokens"],
        patch_size=shape["patch_size"],
        image_size=shape["img_size"],
        interpolate_offset=shape["interpolate_offset"],
        interpolate_antialias=shape["interpolate_antialias"],
        layer_scale_init=shape["layer_scale_init"],
    )
    dino_head, ibot_head = (
        HeadConfig(count, head["bottleneck_dim"], head["hidden_dim"], head["nlayers"])
        for count in (head["n_prototypes"], head["ibot_n_prototypes"])
    )
    objective = ObjectiveConfig(
        dino_head=dino_head,
        ibot_head=ibot_head if head["separate_ibot_head"] else None,
        centering=spec["centering"],
        sinkhorn_iterations=spec["sinkhorn_iterations"],
        center_momentum=spec["center_momentum"],
        student_temp=spec["student_temp"],
        dino_loss_weight=spec["dino_weight"],
        ibot_loss_weight=spec["ibot_weight"],
        koleo_loss_weight=spec["koleo_weight"],
    )
    optim = OptimConfig(
        adamw_beta1=optimizer["betas"][0],
        adamw_beta2=optimizer["betas"][1],
        layerwise_decay=optimizer["layerwise_decay"],
        patch_embed_lr_mult=optimizer["patch_embed_lr_mult"],
        clip_grad=optimizer["clip_grad_per_submodule"],
    )
    teacher = None
    if distils:
        teacher = BackboneWithHeads(backbone, objective)
        teacher.load_state_dict(under(tensors, "init.teacher."))
    models = StudentTeacher(backbone, objective, teacher).load(under(tensors, "init.student."), under(tensors, "init.teacher."))
    return TrainingStep(models, objective, optim, group=group, parallel=parallel)


def batch(tensors: dict[str, Tensor], step: int) -> CropBatch:
    """The crops and masks of one golden step."""
    return CropBatch.make(*(tensors[f"step{step}.collated_{name}"] for name in ("global_crops", "local_crops", "masks")))


def values(spec: dict[str, Any], step: int) -> ScheduleValues:
    """The schedule values of one golden step."""
    given = spec["steps"][step]
    return ScheduleValues(
        lr=given["lr"],
        last_layer_lr=given["last_layer_lr"],
        weight_decay=given["wd"],
        momentum=given["momentum"],
        teacher_temp=given["teacher_temp"],
    )
