"""A training run from its first step to its last, or from where it was stopped.

Read `Run._train_step` beside DINOv2 (arXiv 2304.07193) Sec. 4; `step.py`, `objective.py` and `losses.py` are what it calls, in this order.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from dino_extract.backbone import DinoVisionTransformer
from dino_extract.errors import DivergedError, PreemptedError
from dino_extract.finetuning import distributed, setup
from dino_extract.finetuning.checkpoint import load_training_state, newest_state, training_state
from dino_extract.finetuning.config import FinetuneConfig
from dino_extract.finetuning.data import Decoded, Order, Share, TrainingData
from dino_extract.finetuning.meter import TERMS, Meter
from dino_extract.finetuning.monitor import Monitor, target_entropy
from dino_extract.finetuning.objective import Losses
from dino_extract.finetuning.output import RunFolder
from dino_extract.finetuning.presets import check
from dino_extract.finetuning.publish import Log, Publisher, collapsed_error, diverged_error, gpu_memory_error
from dino_extract.finetuning.schedules import ScheduleValues, head_warmup_values, scaled_lr, schedule_values
from dino_extract.finetuning.starts import continue_heads, warmed_up_teacher
from dino_extract.finetuning.step import TrainingStep, compile_blocks
from dino_extract.finetuning.student_teacher import CropBatch, StudentTeacher
from dino_extract.images.finding import find_images
from dino_extract.images.manifest import Manifest
from dino_extract.names import counted, printable
from dino_extract.results import Result, shown


@dataclass(frozen=True, repr=False)
class FinetuneResult(Result):
    """The result of a run.

    Args:
        output: folder of the run.
        sources: images that it was trained on.
        steps: optimizer steps done.
        images_per_s: speed of this process's part of the run, all ranks together.
        unreadable: images that could not be read.
        evaluations: figures of the monitor, from the first step to the last.
    """

    output: Path
    sources: tuple[str, ...]
    steps: int
    images_per_s: float
    unreadable: int
    evaluations: list[dict[str, float]]

    def summary(self) -> str:
        """Folder and counts."""
        return f"{shown(str(self.output))}, {counted(self.steps, 'step')}, {counted(self.unreadable, 'unreadable image')}"


def train(config: FinetuneConfig, log: Log | None = None) -> FinetuneResult:
    """Train a backbone by a configuration; `finetuning.api.finetune` is the public form, and lists the errors."""
    check(config)
    device = setup.choose_device(config.device)
    distributed.start(device)
    if log is None or distributed.rank() != 0:
        log = _no_log
    try:
        manifest, share = find_images(config.sources), setup.share_of_this_process(config)
        order = Order(len(manifest), share.global_batch, config.seed)
        config = setup.completed(config, order, device)
        # Held from here on: before a teacher's heads are trained into it, and before anything of another run is overwritten.
        with RunFolder(Path(config.output), config) if share.rank == 0 else nullcontext() as folder:
            return Run(config, manifest, order, share, folder, device, log).train()
    except torch.OutOfMemoryError as error:
        raise gpu_memory_error(config, device) from error
    finally:
        distributed.stop()


class Run:
    """A training run: networks, data, and the loop over the steps.

    Args:
        config: complete.
        manifest: the images.
        order: which of them comes when.
        share: what this process takes of each step.
        folder: entered; None on all ranks but the first.
        device: where it trains.
        log: is called with lines of progress.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        manifest: Manifest,
        order: Order,
        share: Share,
        folder: RunFolder | None,
        device: torch.device,
        log: Log,
    ) -> None:
        self.config, self.manifest, self.order, self.share = config, manifest, order, share
        self.device, self.log = device, log
        self.start = setup.load_start(self.config, log)
        setup.check_crops(self.config.crops, self.start.config.patch_size)
        models = self._models()
        starting_backbone = self._backbone(models.average.state_dict())
        is_watched = self.share.rank == 0 and self.config.monitor.images > 0
        self.monitor: Monitor | None = setup.build_monitor(self.config, starting_backbone, self.manifest) if is_watched else None
        self.publisher = None if folder is None else Publisher(config, folder, self.start, self.monitor, log)
        self.training = self._training_step(models, starting_backbone)
        self.meter = Meter(share.global_batch)
        self.signalled = False
        self.next_batch: tuple[CropBatch, dict[int, str]] | None = None  # prepared ahead, with the images that failed for it
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

    def train(self) -> FinetuneResult:
        """Train to the last step."""
        first = self._restore()
        if self.publisher is not None:
            self.publisher.folder.begin()
        if self._is_evaluated_after(first):
            self._evaluate(first)
        if first == 0:
            self._save(0)  # the start may turn out to have been the best
        start = time.monotonic()
        with self._signals(), self._data(first) as data:
            self._train_steps(first, data)
        seconds = time.monotonic() - start
        rate = (self.steps - first) * self.share.global_batch / seconds if first < self.steps else 0.0
        evaluations = self.monitor.history.evaluations if self.monitor is not None else []
        return FinetuneResult(Path(self.config.output), self.config.sources, self.steps, rate, len(self.unreadable), evaluations)

    def _train_steps(self, first: int, data: TrainingData) -> None:
        batches = iter(data)
        self.meter.start()
        self.next_batch = self._prepare_batch(batches) if first < self.steps else None
        for step in range(first, self.steps):
            if step in (first, self.head_warmup):
                self.training.freeze_backbone(step < self.head_warmup)
            torch.manual_seed(_step_seed(self.config.seed, step, self.share.rank))  # checkpoints need no RNG state
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
            assert self.next_batch is not None, "the data ends with the last step"
            batch, failures = self.next_batch
            self.unreadable.update(failures)
            losses = self.training.backward(batch, values.teacher_temp, share=1 / accumulation, is_last=micro == accumulation - 1)
            # Now, while a GPU is busy with the backward pass: the update waits for it.
            self.next_batch = self._prepare_batch(batches)
        try:
            return losses, self.training.update(values)
        except DivergedError as error:
            raise diverged_error(self.config, error, losses, step) from error

    def _prepare_batch(self, batches: Iterator[Decoded]) -> tuple[CropBatch, dict[int, str]] | None:
        """The next batch on the device, and the images that could not be read for it; None after the last."""
        with self.meter.waiting():
            decoded = next(batches, None)
        if decoded is None:
            return None
        return decoded.batch(self.config.crops, self.device, hide=self.config.distill is None), decoded.failures

    def values(self, step: int) -> ScheduleValues:
        """The scheduled values of a step: the head warm-up has a schedule of its own, and the run proper starts after it."""
        warmup, schedule = self.head_warmup, self.config.schedule
        if step < warmup:
            return head_warmup_values(schedule, self.config.optim.head_warmup_lr, step, warmup)
        lr = scaled_lr(self.config.optim.base_lr, self.share.global_batch)
        return schedule_values(schedule, lr, step - warmup, self.steps - warmup)

    def _after_step(self, done: int) -> None:
        """Evaluate, save and stop where it is time to; all ranks decide the same."""
        every = self.config.checkpoint_steps or 1
        signalled, is_evaluated = bool(self._agree(self.signalled)), self._is_evaluated_after(done)
        if is_evaluated:
            self._evaluate(done)
        if is_evaluated or signalled or done % every == 0:
            self._save(done)
        if is_evaluated and self._agree(self.monitor is not None and self.monitor.history.is_collapsed):
            raise collapsed_error(done, "the first rank reports more" if self.publisher is None else self.publisher.publish_best())
        if signalled and done < self.steps:
            raise PreemptedError(
                f"stopped by a signal after step {done} of {self.steps}; everything is saved", hint="run the same command again to continue"
            )

    def _is_evaluated_after(self, done: int) -> bool:
        """Whether an evaluation follows `done` steps; depends on the step only, so a resumed run evaluates at the same steps."""
        return done % (self.config.monitor.every_steps or 1) == 0 or done == self.steps

    def _evaluate(self, done: int) -> None:
        """Evaluate the average backbone on the first rank; every rank has to call it."""
        average = self.training.models.average.backbone.state_dict(prefix="backbone.")
        weights = {name: distributed.whole(tensor) for name, tensor in average.items()}
        if self.publisher is not None and self.monitor is not None and not self.monitor.history.has(done):
            self.publisher.add_evaluation(self.monitor.evaluate(self._backbone(weights), done), done)
        distributed.wait_for_all()

    def _save(self, done: int) -> None:
        state = training_state(self.training)
        pending = self.meter.pending().to(self.device)
        if len(pending):
            pending = distributed.sum_over_ranks(pending, distributed.world()) / self.share.world_size
        self.unreadable = distributed.union_over_ranks(self.unreadable)
        if self.publisher is not None:
            failures = [(printable(self.manifest.keys[row]), why) for row, why in self.unreadable.items()]
            self.publisher.save(done, {"losses": pending.cpu(), "unreadable": self.unreadable, **state}, failures)
        distributed.wait_for_all()

    def _restore(self) -> int:
        """Load the newest checkpoint, if there is one; the number of steps already done."""
        state = newest_state(self.config.output)
        if self.publisher is not None:
            self.publisher.folder.continue_from(-1 if state is None else state["step"])
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
            self.monitor.history.evaluations = list(state["evaluations"] if "evaluations" in state else state["looks"])  # the earlier name
        if self.publisher is not None:
            self.publisher.finish_publishing(state)
        self.log(f"continuing after step {done} of {self.steps}")
        return done

    def _log(self, done: int, values: ScheduleValues) -> None:
        """Add a line of figures; every rank has to call it."""
        means = distributed.sum_over_ranks(self.meter.means().to(self.device), distributed.world()).cpu() / self.share.world_size
        self.unreadable = distributed.union_over_ranks(self.unreadable)
        undecided, even = target_entropy(self.training.cls_targets.flatten(0, 1))
        figures: dict[str, Any] = {"step": done, "epoch": round(done / self.order.steps_per_epoch, 4), "loss": float(means.sum())}
        figures |= dict(zip(TERMS, means.tolist(), strict=True)) | self.meter.norms()
        figures |= {"lr": values.lr, "weight_decay": values.weight_decay, "momentum": values.momentum, "teacher_temp": values.teacher_temp}
        figures |= {"target_entropy": undecided, "prototype_entropy": even, "unreadable": len(self.unreadable), **self.meter.restart()}
        if self.publisher is not None:
            self.publisher.add_figures(figures)

    def _models(self) -> StudentTeacher:
        teacher = None
        if self.config.distill is not None and self.config.keep_heads:
            teacher, _ = setup.load_teacher(self.config, self.log)  # its heads come with the others, in `_restore`
        elif self.config.distill is not None:
            teacher = warmed_up_teacher(self.config, self.manifest, self.share, self.device, self.log)
        models = setup.build_models(self.config, self.start, teacher)
        models.student.backbone.checkpoint_blocks = self.config.checkpoint_blocks
        if self.config.compile == "on":
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
        with torch.device("meta"):  # start values of a large one would hold up every evaluation
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
            workers=setup.decoders_of_this_process(self.config),
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While training, SIGTERM and SIGUSR1 only set `signalled`, which is read after the step."""

        def note(number: int, frame: FrameType | None) -> None:
            self.signalled = True

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _agree(self, wanted: bool) -> float:
        """1 on every rank if any rank wants it."""
        if distributed.world() is None:
            return float(wanted)
        return float(distributed.max_over_ranks(torch.tensor(float(wanted), device=self.device), distributed.world()))


def _no_log(line: str) -> None:
    """Ignore a line of progress."""


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for what is drawn on the device (stochastic depth), another for every step and rank."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
