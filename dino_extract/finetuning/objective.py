"""The DINOv2 objective of one step: teacher scores to targets, targets and student scores to losses.

Dimension key: B images in the batch, G = 2 global crops and L local crops of each, K prototypes, M masked patches in the batch.

Source: DINOv2 (arXiv 2304.07193) Sec. 4; official dinov2/train/ssl_meta_arch.py, forward_backward.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dino_extract.finetuning.config import ObjectiveConfig
from dino_extract.finetuning.distributed import ProcessGroup
from dino_extract.finetuning.losses import Center, dino_loss, ibot_patch_loss, koleo_loss, sinkhorn_knopp, softmax_center
from dino_extract.finetuning.student_teacher import NUM_GLOBAL_CROPS, StudentOutput, TeacherOutput


@dataclass(frozen=True)
class TeacherTargets:
    """Distributions that the student is to predict.

    Args:
        cls: (G, B, K) float32, of each global crop.
        masked: (M, K) float32, of each hidden patch.
    """

    cls: Tensor
    masked: Tensor


@dataclass(frozen=True)
class Losses:
    """The weighted terms of the objective; each () float32, and their sum is what is minimised."""

    dino_local: Tensor
    dino_global: Tensor
    koleo: Tensor
    ibot: Tensor
    anchor: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of all terms."""
        first, *others = (getattr(self, field.name) for field in fields(self))
        total: Tensor = sum(others, start=first)
        return total

    def official(self) -> dict[str, Tensor]:
        """The terms as the official training logs show them: KoLeo and iBOT there are half of what enters the sum."""
        return {
            "dino_local_crops_loss": self.dino_local,
            "dino_global_crops_loss": self.dino_global,
            "koleo_loss": self.koleo / 2,
            "ibot_loss": self.ibot / 2,
        }


class Objective:
    """Targets and losses of one step; the only thing that it remembers are the two centres, which `targets` updates when it uses them.

    Args:
        config: weights, temperatures, and how targets are kept from collapsing.
        group: ranks that share a batch; None for this process alone.
        device: where the centres live.
    """

    def __init__(self, config: ObjectiveConfig, group: ProcessGroup = None, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.group = group
        ibot_head = config.ibot_head or config.dino_head
        self.dino_center = Center(config.dino_head.n_prototypes, config.center_momentum, device)
        self.ibot_center = Center(ibot_head.n_prototypes, config.center_momentum, device)

    def targets(self, teacher: TeacherOutput, teacher_temp: float) -> TeacherTargets:
        """The distributions that the student is to predict, without gradient.

        With `centering="centering"` they use the centres of the batches before this one, which then move on.
        """
        cls_logits = teacher.cls_logits.flatten(0, 1)
        if self.config.centering == "sinkhorn_knopp":
            iterations = self.config.sinkhorn_iterations
            cls = sinkhorn_knopp(cls_logits, teacher_temp, iterations, self.group)
            masked = sinkhorn_knopp(teacher.masked_logits, teacher_temp, iterations, self.group)
        else:
            cls = softmax_center(cls_logits, self.dino_center.value, teacher_temp)
            masked = softmax_center(teacher.masked_logits, self.ibot_center.value, teacher_temp)
            self.dino_center.update(cls_logits, self.group)
            self.ibot_center.update(teacher.masked_logits, self.group)
        return TeacherTargets(cls.unflatten(0, (NUM_GLOBAL_CROPS, -1)), masked)

    def losses(self, student: StudentOutput, targets: TeacherTargets, masks: Tensor, anchor: Tensor | None = None) -> Losses:
        """All weighted terms of the loss.

        Args:
            student: scores and tokens of the student.
            targets: from `targets`, for the same batch.
            masks: (G * B, N) bool, the hidden patches.
            anchor: () float32, unweighted distance to the starting model's features; None where there is none.
        """
        config = self.config
        num_local = len(student.local_logits)
        num_pairs = (NUM_GLOBAL_CROPS - 1) * NUM_GLOBAL_CROPS + max(num_local * NUM_GLOBAL_CROPS, 1)
        zero = student.global_logits.new_zeros(())

        local = dino_loss(student.local_logits, targets.cls, config.student_temp) if num_local else zero
        # Each global crop learns from the other one only: a crop's own target would be solved by copying.
        pairs = zip(student.global_logits.split(1), reversed(targets.cls.split(1)), strict=True)
        crossed = [dino_loss(logits, other, config.student_temp) for logits, other in pairs]
        koleo = torch.stack([koleo_loss(cls_BD, group=self.group if config.koleo_over_ranks else None) for cls_BD in student.global_cls])
        ibot = ibot_patch_loss(student.masked_logits, targets.masked, masks, config.student_temp)
        return Losses(
            dino_local=config.dino_loss_weight * local / num_pairs,
            dino_global=config.dino_loss_weight * torch.stack(crossed).sum() / num_pairs,
            koleo=config.koleo_loss_weight * koleo.sum(),
            ibot=config.ibot_loss_weight * ibot,
            anchor=zero if anchor is None else config.anchor_loss_weight * anchor,
        )
