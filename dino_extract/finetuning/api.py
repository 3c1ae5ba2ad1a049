"""`finetune`: unlabelled images in, an adapted or new backbone out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from dino_extract.finetuning.loop import FinetuneResult, train
from dino_extract.finetuning.presets import Preset, configure

PathLike = str | os.PathLike[str]


def finetune(
    sources: PathLike | Iterable[PathLike] | None = None,
    output: PathLike | None = None,
    *,
    model: str | None = None,
    weights: PathLike | None = None,
    eval: PathLike | None = None,  # noqa: A002 - the name of the option
    preset: Preset | None = None,
    config: PathLike | None = None,
    log: Callable[[str], None] | None = None,
    **settings: Any,
) -> FinetuneResult:
    """Adapt a backbone to unlabelled images with the DINOv2 objective, or train one from scratch.

    The folder `output` gets `model.safetensors`, which `embed(..., weights=output)` takes, and `best.safetensors` of the best evaluation.
    Called again with the same arguments, a run continues where it was stopped, and ends with the same weights.

    Example:
        result = finetune("photos/", "run/", eval="labelled/", steps=2000, optim={"base_lr": 1e-4}, log=print)
        embed("photos/", weights=result.output)

    Args:
        sources: one or several folders, images, globs, `.tar` or `.zip` archives, or lists; only with `config` they may be left out.
        output: folder of the run.
        model: backbone to start from, a name from `dino-extract weights list`; by default vits14.
        weights: checkpoint or folder of a run to start from, instead of the released weights of `model`.
        eval: labelled images (`CLASS/*.jpg`) for a kNN accuracy during the run.
        preset: set of default values: `small` (your own images, the default), `short` or `long` (official recipes).
        config: `config.json` of another run, whose values are used instead of a preset's.
        log: is called with each line of progress.
        settings: any other value of `FinetuneConfig`, such as `steps=2000` or `from_scratch=True`; a group of values, such as `optim`, is a
            mapping.

    Raises:
        ConfigError: options are invalid, contradict each other, or differ from those of the run in `output`.
        DivergedError: a gradient became NaN or infinite.
        CollapsedError: the embeddings collapsed; `model.safetensors` has the weights of the best evaluation.
        PreemptedError: SIGTERM or SIGUSR1 came; everything is saved.
        GpuMemoryError: the batch is too large for the GPU.
        RunBusyError: another process is training into `output`.
    """
    named = {"sources": sources, "output": output, "model": model, "weights": weights, "eval": eval}
    given = {name: value for name, value in named.items() if value is not None}
    return train(configure({**given, **settings}, preset=preset, config=config), log)
