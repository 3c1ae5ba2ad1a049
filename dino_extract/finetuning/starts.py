"""Heads that a run does not start from random weights: those of an earlier run, and those of a frozen teacher.

Released backbones come without heads. A teacher's heads are therefore trained first, by the same objective, on the same images, with its
backbone frozen: the student then learns the assignment to prototypes that this backbone settles on.

Source: DINOv2 (arXiv 2304.07193) Sec. 5, "Model distillation", where the teacher still had its heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from dino_extract.errors import ConfigError
from dino_extract.finetuning import distributed, setup
from dino_extract.finetuning.checkpoint import Checkpoints, State, load_networks, network_weights, newest_state
from dino_extract.finetuning.config import FinetuneConfig
from dino_extract.finetuning.data import Order, Share, TrainingData
from dino_extract.finetuning.output import deciding_differences
from dino_extract.finetuning.schedules import head_warmup_values
from dino_extract.finetuning.step import TrainingStep
from dino_extract.finetuning.student_teacher import BackboneWithHeads, StudentTeacher
from dino_extract.images.manifest import Manifest

ORDER_OFFSET = 1  # the heads see the images in another order than the run does


def continue_heads(training: TrainingStep, config: FinetuneConfig) -> None:
    """Load the networks of the run `config.weights`, heads included.

    Raises:
        ConfigError: it has no checkpoint, or learned from another teacher than `config.distill`.
    """
    assert config.weights is not None, "checked with the configuration"
    state = newest_state(config.weights)
    if state is None:
        raise ConfigError(
            f"`keep_heads` needs a run with checkpoints, `{config.weights}` has none", hint="leave it out to start with new heads"
        )
    if config.distill is not None:
        _require_teacher_of(state, training, config)
    load_networks(training, state)


def _require_teacher_of(state: State, training: TrainingStep, config: FinetuneConfig) -> None:
    given, kept = network_weights(training.models.teacher), state.get("teacher", {})
    names = [name for name in given if name.startswith("backbone.")]
    if not all(name in kept and torch.equal(given[name], kept[name]) for name in names):
        raise ConfigError(
            f"`keep_heads` with `distill` needs the teacher of that run, and `{config.weights}` did not learn from `{config.distill}`",
            hint="leave out `--keep-heads`: the heads of this teacher are then trained first",
        )


def warmed_up_teacher(
    config: FinetuneConfig, manifest: Manifest, share: Share, device: torch.device, log: Callable[[str], None]
) -> BackboneWithHeads:
    """The teacher with trained heads; they are kept in the run's folder, and a continued run reads them from there.

    Heads that were kept for another teacher, or by a run with other settings that failed before its first step, are replaced.

    Args:
        config: complete; `head_warmup_steps` is how long the heads learn.
        manifest: the images.
        share: what this process takes of each step.
        device: where to train.
        log: is called with lines of progress.
    """
    teacher, sha256 = setup.load_teacher(config, log)
    kept = Checkpoints(Path(config.output) / "teacher", keep=1)
    state = kept.newest()
    made_from = {"teacher_sha256": sha256, "settings": deciding_differences(FinetuneConfig(), config)}
    if state is not None and state.get("made_from") != made_from:
        log(f"`{kept.folder}` was made from another teacher or with other settings: the heads are trained again")
        state = None
    if state is None:
        state = {"made_from": made_from, "network": _train_heads(config, teacher, manifest, share, device, log)}
        if share.rank == 0:
            kept.clear()
            kept.save(config.head_warmup_steps or 0, state)
        distributed.wait_for_all()
    teacher.load_state_dict(state["network"])
    return teacher


def _train_heads(
    config: FinetuneConfig, teacher: BackboneWithHeads, manifest: Manifest, share: Share, device: torch.device, log: Callable[[str], None]
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
    order = Order(len(manifest), share.global_batch, config.seed + ORDER_OFFSET)
    patch, workers = teacher.backbone.patch_size, setup.decoders_of_this_process(config)
    with TrainingData(manifest, order, share, config.crops, patch, first_step=0, last_step=steps, workers=workers) as data:
        batches = iter(data)
        for step in range(steps):
            values = head_warmup_values(config.schedule, config.optim.head_warmup_lr, step, steps)
            for micro in range(share.accumulation):
                batch = next(batches).batch(config.crops, device)
                is_last = micro == share.accumulation - 1
                losses = training.backward(batch, values.teacher_temp, share=1 / share.accumulation, is_last=is_last)
            training.update(values)
            if (step + 1) % config.log_steps == 0:
                log(f"teacher's heads: step {step + 1}/{steps} loss {losses.total.item():.4f}")
    return network_weights(models.average)
