"""A training run from its first step to its last, or from where it was stopped.

Read `Run._train_step` beside DINOv2 (arXiv 2304.07193) Sec. 4; `step.py`, `objective.py` and `losses.py` are what it calls, in this order.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from dino_extract.backbone import DinoVisionTransformer
from dino_extract.finetune import distributed, setup
from dino_extract.finetune.checkpoint import load_training_state, newest_state, training_state
from dino_extract.finetune.config import FinetuneConfig
from dino_extract.finetune.data import Decoded, Order, Share, TrainingData
from dino_extract.finetune.distillation import warmed_up_teacher
from dino_extract.finetune.endings import CollapsedError, PreemptedError, gpu_memory_error
from dino_extract.finetune.kept_heads import continue_heads
from dino_extract.finetune.meter import TERMS, Meter
from dino_extract.finetune.monitor import Monitor, target_entropy
from dino_extract.finetune.objective import Losses
from dino_extract.finetune.output import BEST_MODEL, MODEL, RunFolder
from dino_extract.finetune.presets import check
from dino_extract.finetune.schedules import ScheduleValues, scaled_lr, schedule_values
from dino_extract.finetune.step import DivergedError, TrainingStep, compile_blocks
from dino_extract.finetune.student_teacher import CropBatch, StudentTeacher
from dino_extract.images.finding import find_images
from dino_extract.images.manifest import Manifest
from dino_extract.names import printable, quoted

Say = Callable[[str], None]

HEAD_WARMUP_MOMENTUM = 0.99  # of the average of heads that start from nothing: it must follow them within the warm-up


@dataclass(frozen=True)
class RunSummary:
    """What a run came to.

    Args:
        output: folder of the run.
        steps: optimizer steps done.
        images_per_s: over this process's part of the run, all ranks together.
        unreadable: images that could not be read.
        looks: figures of the monitor, from the first step to the last.
    """

    output: Path
    steps: int
    images_per_s: float
    unreadable: int
    looks: list[dict[str, float]]


def finetune(config: FinetuneConfig, say: Say = lambda text: None) -> RunSummary:
    """Train a backbone on unlabelled images and leave `model.safetensors`, and `best.safetensors` of the best look, in the run's folder.

    Called again with the same configuration it continues where it was stopped, and ends with the same weights.

    Args:
        config: everything that decides the run; see `presets.preset` for starting points.
        say: takes the lines of progress of the first rank.

    Raises:
        DivergedError: a gradient became NaN or infinite.
        CollapsedError: the monitor saw a collapse; `model.safetensors` is that of the best look.
        PreemptedError: SIGTERM or SIGUSR1 came; everything is saved.
        GpuMemoryError: the batch is too large for the GPU.
    """
    check(config)
    device = setup.choose_device(config.device)
    distributed.start(device)
    say = say if distributed.rank() == 0 else lambda text: None
    try:
        manifest, share = find_images(config.sources), setup.share_of_this_process(config)
        order = Order(len(manifest), share.global_batch, config.seed)
        config = setup.completed(config, order, device)
        # Held from here on: before a teacher's heads are trained into it, and before anything of another run is overwritten.
        with RunFolder(Path(config.output), config) if share.rank == 0 else nullcontext() as folder:
            return Run(config, manifest, order, share, folder, device, say).train()
    except torch.OutOfMemoryError as error:
        raise gpu_memory_error(config, device) from error
    finally:
        distributed.stop()


class Run:
    """Everything a run has in hand.

    Args:
        config: complete.
        manifest: the images.
        order: which of them comes when.
        share: what this process takes of each step.
        folder: entered; None on all ranks but the first.
        device: where it trains.
        say: takes lines of progress.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        manifest: Manifest,
        order: Order,
        share: Share,
        folder: RunFolder | None,
        device: torch.device,
        say: Say,
    ) -> None:
        self.config, self.manifest, self.order, self.share = config, manifest, order, share
        self.folder, self.device, self.say = folder, device, say
        self.start = setup.load_start(self.config, say)
        setup.check_crops(self.config.crops, self.start.config.patch_size)
        models = self._models()
        starting_backbone = self._backbone(models.average.state_dict())
        is_watched = self.share.rank == 0 and self.config.monitor.images > 0
        self.monitor: Monitor | None = setup.build_monitor(self.config, starting_backbone, self.manifest) if is_watched else None
        self.training = self._training_step(models, starting_backbone)
        self.meter = Meter(share.global_batch)
        self.signalled = False
        self.ahead: tuple[CropBatch, dict[int, str]] | None = None
        self.unreadable: dict[int, str] = {}  # row -> why; of all ranks as of the last line of figures or checkpoint

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        assert self.config.steps is not None, "the configuration is complete"
        return self.config.steps

    @property
    def head_warmup(self) -> int:
        """Steps at the start in which only the heads learn; in distillation the teacher's learn before the run instead."""
        return 0 if self.config.distill else self.config.head_warmup_steps or 0

    def train(self) -> RunSummary:
        """Train to the last step and give the summary."""
        first = self._restore()
        if self.folder is not None:
            self.folder.begin()
        if self._is_look(first):
            self._look(first)
        if first == 0:
            self._save(0)  # the start may turn out to have been the best
        start = time.monotonic()
        with self._signals(), self._data(first) as data:
            self._train_steps(first, data)
        seconds = time.monotonic() - start
        rate = (self.steps - first) * self.share.global_batch / seconds if first < self.steps else 0.0
        looks = self.monitor.looks if self.monitor is not None else []
        return RunSummary(Path(self.config.output), self.steps, rate, len(self.unreadable), looks)

    def _train_steps(self, first: int, data: TrainingData) -> None:
        batches = iter(data)
        self.meter.start()
        self.ahead = self._next_batch(batches) if first < self.steps else None
        for step in range(first, self.steps):
            if step in (first, self.head_warmup):
                self.training.freeze_backbone(step < self.head_warmup)
            torch.manual_seed(_step_seed(self.config.seed, step, self.share.rank))  # so that there is no state of randomness to save
            values = self.values(step)
            losses, norms = self._train_step(batches, values, step)
            self.meter.add(losses, norms)
            done = step + 1
            if done % self.config.log_steps == 0 or done == self.steps:
                self._log(done, values)
            self._after_step(done)

    def _train_step(self, batches: Iterator[Decoded], values: ScheduleValues, step: int) -> tuple[Losses, dict[str, torch.Tensor]]:
        """One optimizer step: crops and masks, targets and losses, gradients, student, teacher."""
        accumulation = self.config.accumulation
        for micro in range(accumulation):
            assert self.ahead is not None, "the data ends with the last step"
            batch, failures = self.ahead
            self.unreadable.update(failures)
            losses = self.training.backward(batch, values.teacher_temp, share=1 / accumulation, is_last=micro == accumulation - 1)
            # Now, while a GPU is busy with the backward pass: the update waits for it.
            self.ahead = self._next_batch(batches)
        try:
            return losses, self.training.update(values)
        except DivergedError as error:
            raise self._diverged(error, losses, step) from error

    def _next_batch(self, batches: Iterator[Decoded]) -> tuple[CropBatch, dict[int, str]] | None:
        """The next batch on the device, and the images that could not be read for it; None behind the last."""
        with self.meter.waiting():
            decoded = next(batches, None)
        return (
            None if decoded is None else (decoded.batch(self.config.crops, self.device, hide=self.config.distill is None), decoded.failures)
        )

    def values(self, step: int) -> ScheduleValues:
        """The scheduled values of a step: the head warm-up has a schedule of its own, and the run proper starts after it."""
        warmup, schedule = self.head_warmup, self.config.schedule
        if step < warmup:
            heads = replace(schedule, warmup_steps=warmup // 10, freeze_last_layer_steps=0, momentum_teacher=HEAD_WARMUP_MOMENTUM)
            heads = replace(heads, final_momentum_teacher=HEAD_WARMUP_MOMENTUM, teacher_temp=schedule.warmup_teacher_temp)
            return schedule_values(heads, self.config.optim.head_warmup_lr, step, warmup)
        lr = scaled_lr(self.config.optim.base_lr, self.share.global_batch)
        return schedule_values(schedule, lr, step - warmup, self.steps - warmup)

    def _after_step(self, done: int) -> None:
        """Look, save and stop where it is time to; all ranks come to the same conclusion."""
        every = self.config.checkpoint_steps or 1
        signalled, is_look = bool(self._agree(self.signalled)), self._is_look(done)
        if is_look:
            self._look(done)
        if is_look or signalled or done % every == 0:
            self._save(done)
        if is_look and self._agree(self.monitor is not None and self.monitor.is_collapsed):
            raise self._collapsed(done)
        if signalled and done < self.steps:
            raise PreemptedError(
                f"stopped by a signal after step {done} of {self.steps}; all is saved", hint="run the same command again to continue"
            )

    def _is_look(self, done: int) -> bool:
        """Whether the monitor looks after `done` steps; a run that is continued elsewhere does not, so that its looks are the same."""
        return done % (self.config.monitor.every_steps or 1) == 0 or done == self.steps

    def _look(self, done: int) -> None:
        """Have the monitor look at the average backbone; only the first rank does, every rank has to call it."""
        average = self.training.models.average.backbone.state_dict(prefix="backbone.")
        weights = {name: distributed.whole(tensor) for name, tensor in average.items()}
        if self.monitor is not None and not any(look["step"] == done for look in self.monitor.looks):
            look = self.monitor.look(self._backbone(weights), done)
            assert self.folder is not None, "the first rank has the folder"
            self.folder.add(look)
            self.say(f"look at step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in look.items() if name != "step"))
        distributed.wait_for_all()

    def _save(self, done: int) -> None:
        state = training_state(self.training)
        pending = self.meter.pending().to(self.device)
        if len(pending):
            pending = distributed.sum_over_ranks(pending, distributed.world()) / self.share.world_size
        self.unreadable = distributed.union_over_ranks(self.unreadable)
        if self.folder is not None:
            looks = [] if self.monitor is None else self.monitor.looks
            seen = {"looks": looks, "losses": pending.cpu(), "unreadable": self.unreadable}
            self.folder.checkpoints.save(done, {"step": done, **seen, **state})
            self._publish(state["average"], done)
            self.folder.plot()
            self.folder.note_unreadable([(printable(self.manifest.keys[row]), why) for row, why in self.unreadable.items()])
        distributed.wait_for_all()

    def _publish(self, average: dict[str, torch.Tensor], done: int) -> None:
        """Make a saved state the best one if its look is, and the result of the run; only the first rank does."""
        assert self.folder is not None, "the first rank has the folder"
        if self.monitor is not None and self.monitor.is_best_at(done):
            self.folder.checkpoints.keep_as_best(done)
            self._export(average, done, BEST_MODEL)
        self._export(average, done)  # the last, for where it is all are

    def _restore(self) -> int:
        """Put the newest checkpoint back, if there is one; the number of steps already done."""
        state = newest_state(self.config.output)
        if self.folder is not None:
            self.folder.continue_from(-1 if state is None else state["step"])
        if state is None:
            if self.config.keep_heads:
                continue_heads(self.training, self.config)
            return 0
        load_training_state(self.training, state)
        done = int(state["step"])
        if "losses" in state:  # earlier checkpoints have neither
            self.meter.resume(state["losses"].to(self.device))
            self.unreadable = state["unreadable"]
        if self.monitor is not None:
            self.monitor.looks = list(state["looks"])
        is_collapsed = self.monitor is not None and self.monitor.is_collapsed  # then the result is that of the best look
        if self.folder is not None and self.folder.exported_steps() != done and not is_collapsed:
            self._publish(state["average"], done)  # a kill came right after the checkpoint
        self.say(f"continuing after step {done} of {self.steps}")
        return done

    def _export(self, average: dict[str, torch.Tensor], done: int, file: str = MODEL) -> None:
        assert self.folder is not None, "the first rank has the folder"
        record: dict[str, Any] = {
            "trained_by": "dino-extract finetune",
            "steps": done,
            "size": self.config.crops.global_crops_size,
            "started_from_sha256": self.start.weights_sha256,
        }
        shape = replace(self.start.config, drop_path=0.0)
        self.folder.export(file, average, shape, name=self.start.name, licence=self.start.licence, record=record)

    def _log(self, done: int, values: ScheduleValues) -> None:
        meter = self.meter
        means = distributed.sum_over_ranks(meter.means().to(self.device), distributed.world()).cpu() / self.share.world_size
        self.unreadable = distributed.union_over_ranks(self.unreadable)
        undecided, even = target_entropy(self.training.cls_targets.flatten(0, 1))
        figures: dict[str, Any] = {"step": done, "epoch": round(done / self.order.steps_per_epoch, 4), "loss": float(means.sum())}
        figures |= dict(zip(TERMS, means.tolist(), strict=True)) | meter.norms()
        figures |= {"lr": values.lr, "weight_decay": values.weight_decay, "momentum": values.momentum, "teacher_temp": values.teacher_temp}
        figures |= {"target_entropy": undecided, "prototype_entropy": even, "unreadable": len(self.unreadable), **meter.restart()}
        if self.folder is not None:
            self.folder.add(figures)
        self.say(
            f"step {done}/{self.steps} loss {figures['loss']:.4f} lr {values.lr:.2e} {figures['images_per_s']:.1f} images/s "
            f"({100 * figures['input_wait_share']:.0f} % waiting for images, {len(self.unreadable)} unreadable)"
        )

    def _models(self) -> StudentTeacher:
        teacher = None
        if self.config.distill is not None and self.config.keep_heads:
            teacher, _ = setup.load_teacher(self.config, self.say)  # its heads come with the others, in `_restore`
        elif self.config.distill is not None:
            teacher = warmed_up_teacher(self.config, self.manifest, self.share, self.device, self.say)
        models = setup.build_models(self.config, self.start, teacher)
        models.student.backbone.checkpoint_blocks = self.config.checkpoint_blocks
        if self.config.compile:
            compile_blocks(models.student)
            compile_blocks(models.teacher)
        return models

    def _training_step(self, models: StudentTeacher, starting_backbone: DinoVisionTransformer) -> TrainingStep:
        return TrainingStep(
            models,
            self.config.objective,
            self.config.optim,
            group=distributed.world(),
            device=self.device,
            dtype=torch.bfloat16 if self.config.dtype == "bfloat16" else torch.float32,
            parallel=self.config.parallel,
            anchor=starting_backbone if self.config.objective.anchor_loss_weight else None,
        )

    def _backbone(self, weights: dict[str, torch.Tensor]) -> DinoVisionTransformer:
        """A backbone of its own with the weights `backbone.*` of an average network, in eval mode."""
        with torch.device("meta"):  # start values of a large one would hold up every look
            backbone = DinoVisionTransformer(replace(self.start.config, drop_path=0.0))
        own = {name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.")}
        backbone.load_state_dict({name: tensor.to(self.device, copy=True) for name, tensor in own.items()}, assign=True)
        return backbone.eval()

    def _data(self, first: int) -> TrainingData:
        return TrainingData(
            self.manifest,
            self.order,
            self.share,
            self.config.crops,
            self.start.config.patch_size,
            first_step=first,
            last_step=self.steps,
            num_workers=setup.decoders_of_this_process(self.config),
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While training, SIGTERM and SIGUSR1 only leave a note, which is read after the step."""

        def note(number: int, frame: FrameType | None) -> None:
            self.signalled = True

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _agree(self, wish: bool) -> float:
        """1 on every rank if any rank wishes it."""
        if distributed.world() is None:
            return float(wish)
        return float(distributed.max_over_ranks(torch.tensor(float(wish), device=self.device), distributed.world()))

    def _diverged(self, error: DivergedError, losses: Losses, step: int) -> DivergedError:
        terms = ", ".join(f"{name} {getattr(losses, name).item():.4g}" for name in TERMS)
        output, slower = self.config.output, self.config.optim.base_lr / 2
        return DivergedError(
            f"training diverged at step {step}: {error.message} (losses: {terms}); the last good weights are in `{output}`",
            hint=f"start a new run from them with `--weights {quoted(output)} -o ANOTHER --set optim.base_lr={slower:g}`",
        )

    def _collapsed(self, done: int) -> CollapsedError:
        report = "the first rank tells more"
        if self.folder is not None and self.monitor is not None:
            best = self.folder.checkpoints.read(self.folder.checkpoints.best_path)
            self._export(best["average"], int(best["step"]))
            name, figures = self.monitor.criterion, [look[self.monitor.criterion] for look in self.monitor.looks]
            report = f"{name} fell from {max(figures):.4g} to {figures[-1]:.4g}; `model.safetensors` is that of step {best['step']}"
        return CollapsedError(
            f"the embeddings collapsed by step {done}: {report}",
            hint="halve `--set optim.base_lr`, or raise `--set objective.anchor_loss_weight`",
        )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for what is drawn on the device (stochastic depth), another for every step and rank."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
