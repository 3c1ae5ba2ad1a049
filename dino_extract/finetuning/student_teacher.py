"""The student, and the teacher that is its moving average.

Dimension key: B images in the batch, G = 2 global crops and L local crops of each, D embedding width, N patches, K prototypes, M masked
patches in the batch. Batches of crops are laid crop by crop: row g * B + b is crop g of image b.

Source: DINOv2 (arXiv 2304.07193) Sec. 4-5; official dinov2/train/ssl_meta_arch.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.finetuning.config import ObjectiveConfig
from dino_extract.finetuning.heads import DINOHead

NUM_GLOBAL_CROPS = 2


@dataclass(frozen=True)
class CropBatch:
    """The crops and masks of one step on one rank.

    Args:
        global_crops: (G * B, 3, H, W) float32, normalised RGB.
        local_crops: (L * B, 3, H, W) float32, normalised RGB; L may be 0.
        masks: (G * B, N) bool, True at the patches that the student is to predict.
        mask_indices: (M,) int64, positions of those in the flattened masks.
        hide: whether the student sees the mask token in their place; distillation shows them.
    """

    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    mask_indices: Tensor
    hide: bool = True

    @classmethod
    def make(cls, global_crops: Tensor, local_crops: Tensor, masks: Tensor, *, hide: bool = True) -> CropBatch:
        """A batch whose mask positions are found on the host, before anything moves to a GPU and would have to wait for it.

        Without `hide` all patches are to be predicted, and `masks` gives only their number.
        """
        masks = masks if hide else torch.ones_like(masks)
        return cls(global_crops, local_crops, masks, masks.flatten().nonzero().squeeze(1), hide)

    def to(self, device: torch.device) -> CropBatch:
        """The same batch on `device`; a GPU reads what the host has from pinned memory, and the host goes on."""
        tensors = {name: getattr(self, name) for name in ("global_crops", "local_crops", "masks", "mask_indices")}
        if device.type == "cuda":
            tensors = {name: tensor if tensor.is_cuda else tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


class StudentOutput(NamedTuple):  # before PyTorch 2.15, FSDP finds tensors in tuples but not in dataclasses
    """What the losses see of the student.

    Args:
        global_cls: (G, B, D) CLS tokens of the masked global crops, before the head.
        global_logits: (G, B, K) their scores.
        local_logits: (L, B, K) scores of the local crops' CLS tokens.
        masked_logits: (M, K) scores of the masked patches.
        global_patches: (G, B, N, D) patch tokens, before the head.
    """

    global_cls: Tensor
    global_logits: Tensor
    local_logits: Tensor
    masked_logits: Tensor
    global_patches: Tensor


@dataclass(frozen=True)
class TeacherOutput:
    """What the targets are made of.

    Args:
        cls_logits: (G, B, K) scores of the CLS tokens of the whole global crops.
        masked_logits: (M, K) scores of the patches that the student does not see.
    """

    cls_logits: Tensor
    masked_logits: Tensor


class BackboneWithHeads(nn.Module):
    """A backbone with its heads; parameter names are `backbone.*`, `dino_head.*` and, with untied heads, `ibot_head.*`."""

    def __init__(self, backbone: BackboneConfig, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.backbone = DinoVisionTransformer(backbone)
        self.dino_head = DINOHead(backbone.embed_dim, objective.dino_head)
        if objective.ibot_head is not None:
            self.ibot_head = DINOHead(backbone.embed_dim, objective.ibot_head)
        self.has_ibot_head = objective.ibot_head is not None

    def forward(self, batch: CropBatch) -> StudentOutput:
        """The student's view: global crops with hidden patches, and local crops, in one pass through the backbone."""
        crops: list[Tensor] = [batch.global_crops]
        masks: list[Tensor | None] = [batch.masks if batch.hide else None]
        if len(batch.local_crops):
            crops, masks = [*crops, batch.local_crops], [*masks, None]
        tokens = self.backbone(crops, masks)
        global_tokens = tokens[0]
        # Not with [], in whose backward pass a GPU sorts the indices.
        patches_MD = global_tokens.patches.flatten(0, 1).index_select(0, batch.mask_indices)
        cls_TD = torch.cat([part.cls for part in tokens])
        cls_logits, masked_logits = self._score(cls_TD, patches_MD)
        images = len(batch.global_crops) // NUM_GLOBAL_CROPS
        logits = cls_logits.unflatten(0, (-1, images))
        return StudentOutput(
            global_cls=global_tokens.cls.unflatten(0, (NUM_GLOBAL_CROPS, images)),
            global_logits=logits[:NUM_GLOBAL_CROPS],
            local_logits=logits[NUM_GLOBAL_CROPS:],
            masked_logits=masked_logits,
            global_patches=global_tokens.patches.unflatten(0, (NUM_GLOBAL_CROPS, images)),
        )

    @torch.no_grad()
    def teach(self, batch: CropBatch) -> TeacherOutput:
        """The teacher's view: whole global crops, and their tokens at the places hidden from the student."""
        tokens = self.backbone(batch.global_crops)
        cls_logits, masked_logits = self._score(tokens.cls, tokens.patches.flatten(0, 1)[batch.mask_indices])
        return TeacherOutput(cls_logits.unflatten(0, (NUM_GLOBAL_CROPS, -1)), masked_logits)

    def heads(self) -> list[DINOHead]:
        """The head, or both."""
        return [self.dino_head, self.ibot_head] if self.has_ibot_head else [self.dino_head]

    def _score(self, cls_TD: Tensor, patches_MD: Tensor) -> tuple[Tensor, Tensor]:
        if self.has_ibot_head:
            return self.dino_head(cls_TD), self.ibot_head(patches_MD)
        cls_TK, masked_MK = self.dino_head(torch.cat([cls_TD, patches_MD])).split([len(cls_TD), len(patches_MD)])
        return cls_TK, masked_MK


class StudentTeacher:
    """A student to train, the moving average of it, and the teacher that it learns from, which is that average unless another is given.

    Args:
        backbone: shape of the student and its average; only the student drops paths.
        objective: which heads they have.
        teacher: a frozen network to learn from instead, with heads of the same numbers of prototypes.
    """

    def __init__(self, backbone: BackboneConfig, objective: ObjectiveConfig, teacher: BackboneWithHeads | None = None) -> None:
        self.student = BackboneWithHeads(backbone, objective)
        self.average = BackboneWithHeads(replace(backbone, drop_path=0.0), objective)
        self.average.load_state_dict(self.student.state_dict())
        self.teacher = self.average if teacher is None else teacher
        for network in (self.average, self.teacher):
            network.requires_grad_(False)
            network.eval()

    def load(self, student: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> StudentTeacher:
        """Take the given weights, keys `backbone.*`, `dino_head.*` and `ibot_head.*`; every key must match."""
        self.student.load_state_dict(student)
        self.average.load_state_dict(average)
        return self

    def load_backbone(self, weights: Mapping[str, Tensor]) -> StudentTeacher:
        """Take the given backbone weights for student and average; every key must match."""
        self.student.backbone.load_state_dict(weights)
        self.average.backbone.load_state_dict(weights)
        return self

    def to(self, device: torch.device | str) -> StudentTeacher:
        """All networks moved to `device`."""
        for network in (self.student, self.average, self.teacher):
            network.to(device)
        return self

    @torch.no_grad()
    def update_average(self, momentum: float) -> None:
        """Move every weight of the average towards the student's: average = momentum * average + (1 - momentum) * student."""
        average: list[Tensor] = [*self.average.parameters()]
        student: list[Tensor] = [*self.student.parameters()]
        # average + (1 - momentum) * (student - average): exactly the same where both are equal, as a frozen backbone is.
        torch._foreach_lerp_(average, student, 1 - momentum)
