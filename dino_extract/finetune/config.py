"""Every choice of a training run, with the official configuration names; a run's `config.json` is this, complete.

Nothing here imports torch: the command line reads its defaults from these classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a projection head.

    Args:
        n_prototypes: scores that the head gives, K.
        bottleneck_dim: width before the prototypes.
        hidden_dim: width of the hidden layers.
        nlayers: linear layers before the prototypes.
    """

    n_prototypes: int = 65536
    bottleneck_dim: int = 256
    hidden_dim: int = 2048
    nlayers: int = 3


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised.

    Args:
        dino_head: head for CLS tokens.
        ibot_head: head for masked patches; None shares the first ("tied").
        centering: how targets are kept from collapsing.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        center_momentum: share of the old centre kept at each step; only with `centering`.
        student_temp: temperature of the student's softmax.
        dino_loss_weight: of the loss on CLS tokens.
        ibot_loss_weight: of the loss on masked patches.
        koleo_loss_weight: of the spread of CLS tokens, per global crop.
        koleo_over_ranks: search the nearest neighbour in the batch of all ranks, so that the loss does not depend on their number;
            off, within each rank, as in the official code.
        anchor_loss_weight: of the distance to the starting model's features; 0 leaves it out. Not part of DINOv2.
    """

    dino_head: HeadConfig = field(default_factory=HeadConfig)
    ibot_head: HeadConfig | None = None
    centering: Literal["sinkhorn_knopp", "centering"] = "sinkhorn_knopp"
    sinkhorn_iterations: int = 3
    center_momentum: float = 0.9
    student_temp: float = 0.1
    dino_loss_weight: float = 1.0
    ibot_loss_weight: float = 1.0
    koleo_loss_weight: float = 0.1
    koleo_over_ranks: bool = True
    anchor_loss_weight: float = 0.0


@dataclass(frozen=True)
class OptimConfig:
    """How gradients move the student.

    Args:
        base_lr: peak learning rate at a batch of 1024 images; it grows with the square root of the batch.
        adamw_beta1: decay of the gradients' running mean.
        adamw_beta2: decay of their running square.
        layerwise_decay: factor of the learning rate for each block further from the output.
        patch_embed_lr_mult: factor of the learning rate of the patch embedding.
        clip_grad: largest gradient norm of the backbone and of each head, separately.
    """

    base_lr: float = 0.004
    adamw_beta1: float = 0.9
    adamw_beta2: float = 0.999
    layerwise_decay: float = 0.9
    patch_embed_lr_mult: float = 0.2
    clip_grad: float = 3.0


@dataclass(frozen=True)
class ScheduleConfig:
    """What changes over the steps; lengths are in optimizer steps.

    Args:
        warmup_steps: linear warm-up of the learning rate.
        min_lr: learning rate at the end.
        weight_decay: at the first step.
        weight_decay_end: at the last.
        momentum_teacher: EMA momentum of the teacher at the first step.
        final_momentum_teacher: at the last.
        warmup_teacher_temp: temperature of the targets at the first step.
        teacher_temp: after `warmup_teacher_temp_steps`.
        warmup_teacher_temp_steps: steps from one to the other.
        freeze_last_layer_steps: steps at the start in which the prototypes do not move.
    """

    warmup_steps: int = 12_500
    min_lr: float = 1e-6
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    momentum_teacher: float = 0.992
    final_momentum_teacher: float = 1.0
    warmup_teacher_temp: float = 0.04
    teacher_temp: float = 0.07
    warmup_teacher_temp_steps: int = 37_500
    freeze_last_layer_steps: int = 1_250


@dataclass(frozen=True)
class CropConfig:
    """How crops are cut and what the student and the teacher see of them.

    Args:
        global_crops_size: side in pixels, a multiple of the patch size.
        local_crops_size: side in pixels, a multiple of the patch size.
        local_crops_number: local crops of each image; 0 leaves them out.
        global_crops_scale: range of the share of the image's area.
        local_crops_scale: the same for local crops.
        blur: `nominal` blurs the first global crop always, the second with probability 0.1 and local ones with 0.5, as the papers say.
            `released` is what the released weights were trained with: the official code hands the probability of keeping a crop
            sharp to a function that expects the opposite, so the first global crop is never blurred and the second one with
            probability 0.9.
        mask_sample_probability: share of the global crops that have hidden patches.
        mask_ratio_min_max: range of the share of hidden patches in those.
        decode_size: side in pixels of the square that images are decoded to before they are cropped; 0 is twice the global size.
    """

    global_crops_size: int = 224
    local_crops_size: int = 98
    local_crops_number: int = 8
    global_crops_scale: tuple[float, float] = (0.32, 1.0)
    local_crops_scale: tuple[float, float] = (0.05, 0.32)
    blur: Literal["nominal", "released"] = "nominal"
    mask_sample_probability: float = 0.5
    mask_ratio_min_max: tuple[float, float] = (0.1, 0.5)
    decode_size: int = 0

    @property
    def decoded_side(self) -> int:
        """Side in pixels of a decoded image."""
        return self.decode_size or 2 * self.global_crops_size
