"""The terms of the DINOv2 objective as pure functions of tokens and scores, in float32.

Dimension key: B images in the batch, G global crops and L local crops of each, D embedding width, N patches, K prototypes, M masked
patches in the batch, R rows of any kind (CLS tokens or masked patches).

Source: DINOv2 (arXiv 2304.07193) Sec. 4; official dinov2/loss/.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_extract.finetuning.distributed import ProcessGroup, all_gather_rows, max_over_ranks, sum_over_ranks


def dino_loss(student_logits_SBK: Tensor, teacher_probs_TBK: Tensor, student_temp: float = 0.1) -> Tensor:
    """Cross-entropy of every student view with every teacher view of the same image, summed over the pairs.

        -sum_s sum_t mean_b sum_k p_t[b, k] log softmax(z_s[b] / temp)[k]

    Args:
        student_logits_SBK: (S, B, K) float, scores of S student views of each image.
        teacher_probs_TBK: (T, B, K) float32, target distributions of T teacher views.
        student_temp: temperature of the student's softmax.

    Returns:
        () float32; the caller divides by the number of pairs it counts.

    Source: DINOv2 Sec. 4, "Image-level objective"; official dinov2/loss/dino_clstoken_loss.py.
    """
    log_probs = F.log_softmax(student_logits_SBK.float() / student_temp, dim=-1)
    # The loss is linear in the targets: summing the teacher views first does the work of all pairs at once.
    return -(teacher_probs_TBK.sum(dim=0) * log_probs).sum(dim=-1).mean(dim=-1).sum()


def ibot_patch_loss(student_logits_MK: Tensor, teacher_probs_MK: Tensor, masks: Tensor, student_temp: float = 0.1) -> Tensor:
    """Cross-entropy at the masked patches: mean over those of each crop, then mean over all crops, masked or not.

    Args:
        student_logits_MK: (M, K) float, scores of the masked patches, crop by crop, each row by row.
        teacher_probs_MK: (M, K) float32, target distributions of the same patches.
        masks: (G * B, N) bool, True at the masked patches; M is their number.
        student_temp: temperature of the student's softmax.

    Returns:
        () float32. Crops without a mask count in the divisor, as in the official code.

    Source: DINOv2 Sec. 4, "Patch-level objective"; official dinov2/loss/ibot_patch_loss.py.
    """
    log_probs = F.log_softmax(student_logits_MK.float() / student_temp, dim=-1)
    masked = masks.sum(dim=1)
    weights_M = (1 / masked.clamp(min=1)).repeat_interleave(masked, output_size=len(log_probs))  # its size given, a GPU waits for nothing
    return -((teacher_probs_MK * log_probs).sum(dim=-1) * weights_M).sum() / len(masks)


def koleo_loss(cls_BD: Tensor, eps: float = 1e-8, group: ProcessGroup = None) -> Tensor:
    """Push each image's CLS token away from its nearest neighbour in the batch.

    Args:
        cls_BD: (B, D) float, student CLS tokens of one global crop, not normalised. Taken to float32 here: in half precision
            the epsilon vanishes and two equal images give an infinite loss.
        eps: keeps the logarithm and the norms finite.
        group: ranks whose tokens are searched for the neighbour; None searches this process's batch alone, as the official
            code does, and then the loss depends on how a batch is spread over processes.

    Returns:
        () float32, mean over the batch of -log(distance to the nearest other token).

    Source: DINOv2 Sec. 4, "KoLeo regularizer"; after Sablayrolles et al. 2019 (arXiv 1806.03198).
    """
    with torch.autocast(cls_BD.device.type, enabled=False):
        own = F.normalize(cls_BD.float(), dim=-1, eps=eps)
        everyone, first = all_gather_rows(own, group)
        with torch.no_grad():
            similarity = own @ everyone.T
            similarity.diagonal(first).fill_(-1)  # nobody is its own neighbour
            nearest = similarity.argmax(dim=1)
        distance = F.pairwise_distance(own, everyone[nearest], p=2, eps=eps)
        return -torch.log(distance + eps).mean()


def anchor_loss(student_cls: Tensor, student_patches: Tensor, anchor_cls: Tensor, anchor_patches: Tensor, masks: Tensor) -> Tensor:
    """Cosine distance to the features that the starting model gives, which a small set of images must not wash away. Not in DINOv2.

    Args:
        student_cls: (G * B, D) float, CLS tokens of the student.
        student_patches: (G * B, N, D) float, its patch tokens.
        anchor_cls: (G * B, D) float, CLS tokens of the starting model for the same crops, whole.
        anchor_patches: (G * B, N, D) float, its patch tokens.
        masks: (G * B, N) bool, patches that the student did not see, which are left out.

    Returns:
        () float32, mean over CLS tokens plus mean over visible patches of 1 - cosine.
    """
    cls = 1 - F.cosine_similarity(student_cls.float(), anchor_cls.float(), dim=-1)
    patches = 1 - F.cosine_similarity(student_patches.float(), anchor_patches.float(), dim=-1)
    visible = ~masks
    return cls.mean() + (patches * visible).sum() / visible.sum().clamp(min=1)


@torch.no_grad()
def sinkhorn_knopp(teacher_logits_RK: Tensor, teacher_temp: float, num_iterations: int = 3, group: ProcessGroup = None) -> Tensor:
    """Target distributions that use all prototypes equally often over the batch.

    Args:
        teacher_logits_RK: (R, K) float, scores of CLS tokens or of masked patches; R may differ between ranks.
        teacher_temp: temperature of the targets.
        num_iterations: alternations of "every prototype gets equal mass" and "every row sums to one".
        group: ranks that hold parts of the batch; None for a batch on this process alone.

    Returns:
        (R, K) float32, rows that sum to 1.

    Source: SwAV (arXiv 2006.09882) Sec. 3.1 for the algorithm; DINOv2 Sec. 4, "Sinkhorn-Knopp centering". The official code takes
    the exponential of the scores as they are; the largest score of the batch is subtracted here first, which the very next
    division undoes and which cannot overflow.
    """
    logits = teacher_logits_RK.float() / teacher_temp
    largest = max_over_ranks(logits.max() if logits.numel() else logits.new_full((), -torch.inf), group)
    assignment_RK = torch.exp(logits - largest)
    num_rows = sum_over_ranks(logits.new_full((), len(logits)), group)
    num_prototypes = logits.shape[1]
    assignment_RK /= sum_over_ranks(assignment_RK.sum(), group)
    for _ in range(num_iterations):
        assignment_RK /= sum_over_ranks(assignment_RK.sum(dim=0, keepdim=True), group) * num_prototypes
        assignment_RK /= assignment_RK.sum(dim=1, keepdim=True) * num_rows
    return assignment_RK * num_rows


@torch.no_grad()
def softmax_center(teacher_logits_RK: Tensor, center_1K: Tensor, teacher_temp: float) -> Tensor:
    """Target distributions softmax((z - c) / T), (R, K) float32.

    Args:
        teacher_logits_RK: (R, K) float scores.
        center_1K: (1, K) float32, running mean of the scores, which keeps one prototype from taking everything.
        teacher_temp: temperature T of the targets, which keeps them from becoming uniform.

    Source: DINO (arXiv 2104.14294) Sec. 3.1, "Avoiding collapse".
    """
    return F.softmax((teacher_logits_RK.float() - center_1K) / teacher_temp, dim=-1)


class Center:
    """The running mean of the teacher's scores; `value` changes only when `update` is called.

    Args:
        num_prototypes: K.
        momentum: share of the old value kept at each update.
    """

    def __init__(self, num_prototypes: int, momentum: float = 0.9, device: torch.device | str = "cpu") -> None:
        self.value = torch.zeros(1, num_prototypes, device=device)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, teacher_logits_RK: Tensor, group: ProcessGroup = None) -> None:
        """Move towards the mean of these scores, over all ranks of the group.

        The targets of a batch use the centre of the batches before it: call this after `softmax_center`. The mean is over all rows of
        all ranks; the official code takes the mean of the ranks' means, which differs where ranks have masked different
        numbers of patches.
        """
        total_K = sum_over_ranks(teacher_logits_RK.float().sum(dim=0), group)
        count = sum_over_ranks(total_K.new_full((), len(teacher_logits_RK)), group)
        moved = self.value * self.momentum + (total_K / count.clamp(min=1)).unsqueeze(0) * (1 - self.momentum)
        self.value = torch.where(count > 0, moved, self.value)
