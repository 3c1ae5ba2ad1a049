"""One training step, from given crops and masks to updated student and teacher.

Source: DINOv2 (arXiv 2304.07193) Sec. 4; official dinov2/train/train.py, do_train.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_extract.backbone import DinoVisionTransformer
from dino_extract.errors import DivergedError
from dino_extract.finetuning.config import ObjectiveConfig, OptimConfig
from dino_extract.finetuning.distributed import ProcessGroup, shard, whole
from dino_extract.finetuning.losses import anchor_loss
from dino_extract.finetuning.objective import Losses, Objective
from dino_extract.finetuning.optim import apply_schedule, build_optimizer, clip_grad_per_submodule
from dino_extract.finetuning.schedules import ScheduleValues
from dino_extract.finetuning.student_teacher import BackboneWithHeads, CropBatch, StudentOutput, StudentTeacher


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

        backbone, objective = BackboneConfig(embed_dim=32, depth=2, num_heads=2, image_size=56), ObjectiveConfig(...)
        models = StudentTeacher(backbone, objective).load(student_state, teacher_state)
        step = TrainingStep(models, objective, OptimConfig())
        result = step(CropBatch.make(global_crops, local_crops, masks), ScheduleValues(lr=2e-3, ...))
        result.losses.official(), result.grad_norms, models.teacher.state_dict(), step.objective.dino_center.value

    Args:
        models: with their start weights.
        objective: heads, targets and loss weights.
        optim: parameter groups, AdamW, clipping.
        group: ranks that share a batch; None for this process alone.
        device: where everything lives.
        dtype: of the networks' products; bfloat16 runs them under autocast.
        parallel: how the networks are spread over the ranks of the group.
        anchor: the starting model, where its features are to be kept.
    """

    def __init__(
        self,
        models: StudentTeacher,
        objective: ObjectiveConfig,
        optim: OptimConfig,
        *,
        group: ProcessGroup = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        parallel: Literal["ddp", "fsdp"] = "ddp",
        anchor: DinoVisionTransformer | None = None,
    ) -> None:
        self.models = models.to(device)
        self.group, self.device, self.dtype, self.optim = group, torch.device(device), dtype, optim
        self.is_sharded = parallel == "fsdp" and group is not None
        self.anchor = None if anchor is None else anchor.to(device).eval().requires_grad_(False)
        if self.is_sharded:
            for network in {id(each): each for each in (models.student, models.average, models.teacher)}.values():
                shard(network, [*network.backbone.blocks, *network.heads()], self.device)
        self.objective = Objective(objective, group, device)
        self.optimizer = build_optimizer(models.student, models.student.backbone.depth, optim)
        self.student = self._wrapped()

    def __call__(self, batch: CropBatch, values: ScheduleValues) -> StepResult:
        """Forward, backward, clipping, optimizer, teacher: one step on one batch."""
        losses = self.backward(batch, values.teacher_temp)
        return StepResult(losses, self.update(values))

    def backward(self, batch: CropBatch, teacher_temp: float, *, share: float = 1.0, is_last: bool = True) -> Losses:
        """Add the gradients of one batch to the student's, and give its losses.

        Args:
            batch: crops and masks of this rank.
            teacher_temp: temperature of the targets.
            share: what the batch counts in its optimizer step, one over the number of accumulated batches.
            is_last: whether it is the last of them, after which the ranks' gradients are averaged.
        """
        with self._gradients_stay_here(not is_last):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                teacher = self.models.teacher.teach(batch)
                student: StudentOutput = self.student(batch)
                distance = self._anchor_distance(batch, student)
            targets = self.objective.targets(teacher, teacher_temp)
            losses = self.objective.losses(student, targets, batch.masks, distance)
            self.cls_targets = targets.cls
            (losses.total * share).backward()
        return losses

    def update(self, values: ScheduleValues) -> dict[str, Tensor]:
        """Clip and apply the gradients, move the average, and give the gradient norms before clipping.

        Raises:
            DivergedError: a gradient is not finite; nothing has been changed then.
        """
        norms = {name: whole(norm) for name, norm in clip_grad_per_submodule(self.models.student, self.optim.clip_grad).items()}
        if not torch.stack([*norms.values()]).isfinite().all():  # asked once, because a GPU must be waited for
            broken = [name for name, norm in norms.items() if not norm.isfinite()]
            raise DivergedError(f"the gradient of {' and '.join(broken)} is NaN or infinite")
        apply_schedule(self.optimizer, values)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.models.update_average(values.momentum)
        return norms

    def freeze_backbone(self, is_frozen: bool) -> None:
        """Let only the heads learn, or everything again."""
        self.models.student.backbone.requires_grad_(not is_frozen)
        self.student = self._wrapped()

    def _wrapped(self) -> nn.Module:
        """The student as it is called; DDP takes note of which parameters learn when it is made."""
        if self.group is None or self.is_sharded:
            return self.models.student
        distils = self.models.teacher is not self.models.average  # and hides nothing: the mask token has no gradient then
        # Gradients lie in the memory that is sent, instead of in a second one as large.
        return DistributedDataParallel(
            self.models.student, process_group=self.group, find_unused_parameters=distils, gradient_as_bucket_view=True
        )

    def _gradients_stay_here(self, stay: bool) -> AbstractContextManager[Any]:
        if self.is_sharded:
            self.models.student.set_requires_gradient_sync(not stay)  # type: ignore[operator]
        return self.student.no_sync() if stay and isinstance(self.student, DistributedDataParallel) else nullcontext()

    def _anchor_distance(self, batch: CropBatch, student: StudentOutput) -> Tensor | None:
        if self.anchor is None:
            return None
        with torch.no_grad():
            tokens = self.anchor(batch.global_crops)
        hidden = batch.masks if batch.hide else torch.zeros_like(batch.masks)
        return anchor_loss(student.global_cls.flatten(0, 1), student.global_patches.flatten(0, 1), tokens.cls, tokens.patches, hidden)


def compile_blocks(network: BackboneWithHeads) -> None:
    """Compile each block of the backbone in place; names of the weights stay as they are."""
    for block in network.backbone.blocks:
        block.compile()
