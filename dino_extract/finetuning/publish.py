"""What a run writes into its folder besides the configuration: checkpoints, models, figures; and the errors that end it.

Only the first rank has a `Publisher`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dino_extract.errors import CollapsedError, DivergedError, GpuMemoryError
from dino_extract.finetuning.checkpoint import State
from dino_extract.finetuning.config import FinetuneConfig
from dino_extract.finetuning.meter import TERMS
from dino_extract.finetuning.monitor import Monitor
from dino_extract.finetuning.objective import Losses
from dino_extract.finetuning.output import BEST_MODEL, MODEL, RunFolder
from dino_extract.finetuning.setup import Start
from dino_extract.names import quoted

Log = Callable[[str], None]


@dataclass(frozen=True)
class Publisher:
    """Writes into the folder of a run.

    Args:
        config: complete.
        folder: entered.
        start: the backbone that the run started from.
        monitor: None where nothing is evaluated.
        log: is called with lines of progress.
    """

    config: FinetuneConfig
    folder: RunFolder
    start: Start
    monitor: Monitor | None
    log: Log

    def save(self, done: int, state: State, failures: Sequence[tuple[str, str]]) -> None:
        """Write a checkpoint after `done` steps, the models, the plot, and the list of unreadable images.

        Args:
            done: optimizer steps.
            state: of the training, whole and on the CPU.
            failures: path and reason of each.
        """
        evaluations = [] if self.monitor is None else self.monitor.history.evaluations
        self.folder.checkpoints.save(done, {"step": done, "evaluations": evaluations, **state})
        self.publish(state["average"], done)
        self.folder.plot()
        self.folder.note_unreadable(failures)

    def publish(self, average: dict[str, torch.Tensor], done: int) -> None:
        """Write the result of the run from a saved state, and make that state the best one if its evaluation is the best."""
        if self.monitor is not None and self.monitor.history.is_best_at(done):
            self.folder.checkpoints.keep_as_best(done)
            self._export(average, done, BEST_MODEL)
        self._export(average, done)  # last, because a result of `done` steps shows that everything else is there

    def finish_publishing(self, state: State) -> None:
        """Write the result of a checkpoint, unless it is there; a kill may come right after the checkpoint."""
        is_collapsed = self.monitor is not None and self.monitor.history.is_collapsed  # then the result is that of the best evaluation
        if self.folder.exported_steps() != int(state["step"]) and not is_collapsed:
            self.publish(state["average"], int(state["step"]))

    def add_evaluation(self, figures: Mapping[str, float], done: int) -> None:
        """Write the figures of an evaluation."""
        self.folder.add(figures)
        listed = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "step")
        self.log(f"evaluation after step {done}: {listed}")

    def add_figures(self, figures: Mapping[str, Any]) -> None:
        """Write one line of figures of the training."""
        self.folder.add(figures)
        self.log(
            f"step {figures['step']}/{self.config.steps} loss {figures['loss']:.4f} lr {figures['lr']:.2e} "
            f"{figures['images_per_s']:.1f} images/s "
            f"({100 * figures['input_wait_share']:.0f} % waiting for images, {figures['unreadable']} unreadable)"
        )

    def publish_best(self) -> str:
        """Make the best evaluation the result of a run whose embeddings collapsed; what happened, for the error."""
        assert self.monitor is not None, "only a monitor sees a collapse"
        best = self.folder.checkpoints.read(self.folder.checkpoints.best_path)
        self._export(best["average"], int(best["step"]))
        name = self.monitor.history.criterion
        values = [figures[name] for figures in self.monitor.history.evaluations]
        return f"{name} fell from {max(values):.4g} to {values[-1]:.4g}; `model.safetensors` is that of step {best['step']}"

    def _export(self, average: dict[str, torch.Tensor], done: int, file: str = MODEL) -> None:
        record: dict[str, Any] = {
            "trained_by": "dino-extract finetune",
            "steps": done,
            "size": self.config.crops.global_crops_size,
            "started_from_sha256": self.start.weights_sha256,
        }
        shape = replace(self.start.config, drop_path=0.0)
        self.folder.export(file, average, shape, name=self.start.name, licence=self.start.licence, record=record)


def collapsed_error(done: int, report: str) -> CollapsedError:
    """The error that stops a run whose embeddings collapsed."""
    return CollapsedError(
        f"the embeddings collapsed by step {done}: {report}",
        hint="halve `--set optim.base_lr`, or raise `--set objective.anchor_loss_weight`",
    )


def diverged_error(config: FinetuneConfig, error: DivergedError, losses: Losses, step: int) -> DivergedError:
    """The error of a step that diverged, with its losses and the way on."""
    terms = ", ".join(f"{name} {getattr(losses, name).item():.4g}" for name in TERMS)
    slower = config.optim.base_lr / 2
    return DivergedError(
        f"training diverged at step {step}: {error.message} (losses: {terms}); the last good weights are in `{config.output}`",
        hint=f"start a new run from them with `--weights {quoted(config.output)} -o ANOTHER --set optim.base_lr={slower:g}`",
    )


def gpu_memory_error(config: FinetuneConfig, device: torch.device) -> GpuMemoryError:
    """The error of a run whose step filled the GPU, with settings that need less."""
    hint = f"`--batch {max(1, config.batch // 2)} --accumulation {2 * config.accumulation}` with another `-o` takes about half"
    if not config.checkpoint_blocks:
        hint = f"add `--checkpoint-blocks`: the same command continues with a fraction of the memory, more slowly; or {hint}"
    return GpuMemoryError(f"`{device}` does not have enough memory for batches of {config.batch} images", hint=hint)
