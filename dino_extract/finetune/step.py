"""One training step, from given crops and masks to updated student and teacher.

Source: DINOv2 (arXiv 2304.07193) Sec. 4; official dinov2/train/train.py, do_train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dino_extract.backbone import BackboneConfig
from dino_extract.finetune.config import ObjectiveConfig, OptimConfig
from dino_extract.finetune.distributed import Group
from dino_extract.finetune.objective import Losses, Objective
from dino_extract.finetune.optim import apply_schedule, build_optimizer, clip_grad_per_submodule
from dino_extract.finetune.schedules import ScheduleValues
from dino_extract.finetune.student_teacher import Batch, StudentTeacher


@dataclass(frozen=True)
class StepResult:
    """What one step measured.

    Args:
        losses: the terms of the objective.
        grad_norms: () float32 for the backbone and each head, before clipping.
    """

    losses: Losses
    grad_norms: dict[str, Tensor]


class TrainingStep:
    """Student, teacher, objective and optimizer, moved on by one batch at each call.

    Example, with the weights, crops and masks of an official training step:

        step = TrainingStep(BackboneConfig(embed_dim=32, depth=2, num_heads=2, image_size=56), ObjectiveConfig(...), OptimConfig())
        step.load(student_state, teacher_state)              # keys `backbone.*`, `dino_head.*`, `ibot_head.*`
        result = step(Batch.make(global_crops, local_crops, masks), ScheduleValues(lr=2e-3, ...))
        result.losses.official(), result.grad_norms, step.models.teacher.state_dict(), step.objective.dino_center.value

    Args:
        backbone: shape of student and teacher.
        objective: heads, targets and loss weights.
        optim: parameter groups, AdamW, clipping.
        group: ranks that share a batch; None for this process alone.
        device: where everything lives.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        objective: ObjectiveConfig,
        optim: OptimConfig,
        *,
        group: Group = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.models = StudentTeacher(backbone, objective).to(device)
        self.student = self.models.student if group is None else DistributedDataParallel(self.models.student, process_group=group)
        self.objective = Objective(objective, group, device)
        self.optim = optim
        self.optimizer = build_optimizer(self.models.student, backbone.depth, optim)

    def load(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """Take the given weights; every key must match."""
        self.models.student.load_state_dict(student)
        self.models.teacher.load_state_dict(teacher)

    def __call__(self, batch: Batch, values: ScheduleValues) -> StepResult:
        """Forward, backward, clipping, optimizer, teacher: one step on one batch."""
        losses = self.backward(batch, values.teacher_temp)
        return StepResult(losses, self.update(values))

    def backward(self, batch: Batch, teacher_temp: float) -> Losses:
        """Add the gradients of one batch to the student's, and give its losses."""
        targets = self.objective.targets(self.models.teacher.teach(batch), teacher_temp)
        losses = self.objective.losses(self.student(batch), targets, batch.masks)
        losses.total.backward()
        return losses

    def update(self, values: ScheduleValues) -> dict[str, Tensor]:
        """Clip and apply the gradients, move the teacher, and give the gradient norms before clipping."""
        apply_schedule(self.optimizer, values)
        norms = clip_grad_per_submodule(self.models.student, self.optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.models.update_teacher(values.momentum)
        return norms
