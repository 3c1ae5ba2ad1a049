"""What changes over training as pure functions of the step: nothing to store, nothing to restore.

Source: official dinov2/utils/utils.py (CosineScheduler) and dinov2/train/train.py (build_schedulers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dino_extract.finetuning.config import ScheduleConfig

HEAD_WARMUP_MOMENTUM = 0.99  # of the average of heads that start from nothing: it must follow them within the warm-up


@dataclass(frozen=True)
class ScheduleValues:
    """The values of one step.

    Args:
        lr: learning rate before the multipliers of the parameter groups.
        last_layer_lr: the same for the prototypes; 0 while they are frozen.
        weight_decay: weight decay before the multipliers.
        momentum: EMA momentum of the teacher.
        teacher_temp: temperature of the targets.
    """

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    teacher_temp: float


def cosine_schedule(
    step: int, base: float, final: float, total: int, *, warmup: int = 0, warmup_from: float = 0.0, frozen: int = 0
) -> float:
    """The value at `step` of: 0 while frozen, a linear warm-up to `base`, half a cosine to `final`, then `final` for ever.

    Args:
        step: from 0.
        base: value that the warm-up reaches at its last step.
        final: value that the cosine ends at.
        total: steps of the whole schedule, frozen and warm-up steps included.
        warmup: steps of the warm-up.
        warmup_from: value at its first step.
        frozen: steps at the start with value 0.
    """
    if step < frozen:
        return 0.0
    if step >= total:
        return final
    step -= frozen
    if step < warmup:
        return warmup_from + (base - warmup_from) * step / max(warmup - 1, 1)
    share = (step - warmup) / max(total - frozen - warmup, 1)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * share))


def scaled_lr(base_lr: float, global_batch: int) -> float:
    """The learning rate for a batch over all ranks and accumulation steps: proportional to its square root, base at 1024."""
    return base_lr * math.sqrt(global_batch / 1024)


def schedule_values(config: ScheduleConfig, lr: float, step: int, total: int) -> ScheduleValues:
    """All scheduled values of one step.

    Args:
        config: base values, final values and lengths in steps.
        lr: peak learning rate, already scaled to the batch.
        step: optimizer step, from 0.
        total: optimizer steps of the run.
    """
    config = config.resolved(total)
    assert config.warmup_steps is not None and config.warmup_teacher_temp_steps is not None and config.freeze_last_layer_steps is not None
    lr_now = cosine_schedule(step, lr, config.min_lr, total, warmup=config.warmup_steps)
    temp_steps = config.warmup_teacher_temp_steps
    return ScheduleValues(
        lr=lr_now,
        last_layer_lr=0.0 if step < config.freeze_last_layer_steps else lr_now,
        weight_decay=cosine_schedule(step, config.weight_decay, config.weight_decay_end, total),
        momentum=cosine_schedule(step, config.momentum_teacher, config.final_momentum_teacher, total),
        teacher_temp=cosine_schedule(
            step, config.teacher_temp, config.teacher_temp, temp_steps, warmup=temp_steps, warmup_from=config.warmup_teacher_temp
        ),
    )


def head_warmup_values(config: ScheduleConfig, lr: float, step: int, total: int) -> ScheduleValues:
    """All scheduled values of one of the `total` steps in which only heads learn, with a peak learning rate of `lr`."""
    heads = replace(config, warmup_steps=total // 10, freeze_last_layer_steps=0, teacher_temp=config.warmup_teacher_temp)
    heads = replace(heads, momentum_teacher=HEAD_WARMUP_MOMENTUM, final_momentum_teacher=HEAD_WARMUP_MOMENTUM)
    return schedule_values(heads, lr, step, total)
