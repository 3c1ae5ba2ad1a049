"""How a run ends before its last step, other than by a step that diverges."""

from __future__ import annotations

import torch

from dino_extract.errors import DinoExtractError, ExitCode
from dino_extract.finetune.config import FinetuneConfig


class PreemptedError(DinoExtractError):
    """SIGTERM or SIGUSR1 came; the run is saved and can be continued."""

    exit_code = ExitCode.TRY_AGAIN


class CollapsedError(DinoExtractError):
    """The embeddings have lost what they could tell apart."""


class GpuMemoryError(DinoExtractError):
    """A step needs more memory than the GPU has."""


def gpu_memory_error(config: FinetuneConfig, device: torch.device) -> GpuMemoryError:
    """The error where a step of this run has filled the GPU, with what takes less."""
    hint = f"`--batch {max(1, config.batch_size // 2)} --accumulation {2 * config.accumulation}` with another `-o` takes about half"
    if not config.checkpoint_blocks:
        hint = f"add `--checkpoint-blocks`, with which the same command goes on with a fraction of it, more slowly; or {hint}"
    return GpuMemoryError(f"`{device}` has not enough memory for batches of {config.batch_size} images", hint=hint)
