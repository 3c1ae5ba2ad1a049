"""A frozen teacher for distillation, whose heads first learn what its backbone sees.

Released backbones come without heads. They are trained here by the same objective, on the same images, with the teacher's backbone frozen:
what is distilled is then the assignment to prototypes that this backbone settles on.

Source: DINOv2 (arXiv 2304.07193) Sec. 5, "Model distillation", where the teacher still had its heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from dino_extract.finetune import distributed, setup
from dino_extract.finetune.checkpoint import Checkpoints, network_weights
from dino_extract.finetune.config import FinetuneConfig
from dino_extract.finetune.data import Order, Share, TrainingData
from dino_extract.finetune.output import deciding_differences
from dino_extract.finetune.schedules import schedule_values
from dino_extract.finetune.step import TrainingStep
from dino_extract.finetune.student_teacher import BackboneWithHeads, StudentTeacher
from dino_extract.images.manifest import Manifest

MOMENTUM = 0.99  # of the average of heads that start from nothing
ORDER_OFFSET = 1  # the heads see the images in another order than the run does


def warmed_up_teacher(
    config: FinetuneConfig, manifest: Manifest, share: Share, device: torch.device, say: Callable[[str], None]
) -> BackboneWithHeads:
    """The teacher with trained heads; they are kept in the run's folder, and a run that is continued reads them from there.

    What was kept for another teacher, or by a run with other settings that failed before its first step, is replaced.

    Args:
        config: complete; `head_warmup_steps` is how long the heads learn.
        manifest: the images.
        share: what this process takes of each step.
        device: where to train.
        say: takes lines of progress.
    """
    teacher, sha256 = setup.load_teacher(config, say)
    kept = Checkpoints(Path(config.output) / "teacher", keep=1)
    state = kept.newest()
    made_from = {"teacher_sha256": sha256, "settings": deciding_differences(FinetuneConfig(), config)}
    if state is not None and state.get("made_from") != made_from:
        say(f"`{kept.folder}` was made from another teacher or with other settings: the heads are trained anew")
        state = None
    if state is None:
        state = {"made_from": made_from, "network": _train_heads(config, teacher, manifest, share, device, say)}
        if share.rank == 0:
            kept.clear()
            kept.save(config.head_warmup_steps or 0, state)
        distributed.wait_for_all()
    teacher.load_state_dict(state["network"])
    return teacher


def _train_heads(
    config: FinetuneConfig, teacher: BackboneWithHeads, manifest: Manifest, share: Share, device: torch.device, say: Callable[[str], None]
) -> dict[str, torch.Tensor]:
    steps = config.head_warmup_steps or 0
    torch.manual_seed(config.seed)
    models = StudentTeacher(teacher.backbone.config, config.objective).load_backbone(teacher.backbone.state_dict())
    objective = replace(config.objective, anchor_loss_weight=0.0)
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    training = TrainingStep(
        models, objective, config.optim, group=distributed.world(), device=device, dtype=dtype, parallel=config.parallel
    )
    training.freeze_backbone(True)
    schedule = replace(config.schedule, warmup_steps=steps // 10, freeze_last_layer_steps=0)
    schedule = replace(
        schedule, momentum_teacher=MOMENTUM, final_momentum_teacher=MOMENTUM, teacher_temp=config.schedule.warmup_teacher_temp
    )
    order = Order(len(manifest), share.global_batch, config.seed + ORDER_OFFSET)
    patch, workers = teacher.backbone.patch_size, setup.decoders_of_this_process(config)
    with TrainingData(manifest, order, share, config.crops, patch, first_step=0, last_step=steps, num_workers=workers) as data:
        batches = iter(data)
        for step in range(steps):
            values = schedule_values(schedule, config.optim.head_warmup_lr, step, steps)
            for micro in range(share.accumulation):
                batch = next(batches).batch(config.crops, device)
                losses = training.backward(
                    batch, values.teacher_temp, share=1 / share.accumulation, is_last=micro == share.accumulation - 1
                )
            training.update(values)
            if (step + 1) % config.log_steps == 0:
                say(f"teacher's heads: step {step + 1}/{steps} loss {losses.total.item():.4f}")
    return network_weights(models.average)
