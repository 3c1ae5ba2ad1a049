"""`--keep-heads`: a run that starts with all networks of an earlier one, and with a schedule of its own."""

from __future__ import annotations

import torch

from dino_extract.errors import ConfigError
from dino_extract.finetune.checkpoint import State, load_networks, network_weights, newest_state
from dino_extract.finetune.config import FinetuneConfig
from dino_extract.finetune.step import TrainingStep


def continue_heads(training: TrainingStep, config: FinetuneConfig) -> None:
    """Load the networks of the run `config.weights`, heads included.

    Raises:
        ConfigError: it has no checkpoint, or has learnt from another teacher than `config.distill`.
    """
    assert config.weights is not None, "checked with the configuration"
    state = newest_state(config.weights)
    if state is None:
        raise ConfigError(
            f"`--keep-heads` needs a run with checkpoints, `{config.weights}` has none",
            hint="leave it out to start with new heads",
        )
    if config.distill is not None:
        _require_teacher_of(state, training, config)
    load_networks(training, state)


def _require_teacher_of(state: State, training: TrainingStep, config: FinetuneConfig) -> None:
    given, kept = network_weights(training.models.teacher), state.get("teacher", {})
    names = [name for name in given if name.startswith("backbone.")]
    if not all(name in kept and torch.equal(given[name], kept[name]) for name in names):
        raise ConfigError(
            f"`--keep-heads` with `--distill` goes on with the teacher of the run, and `{config.weights}` did not learn from "
            f"`{config.distill}`",
            hint="leave out `--keep-heads`: the heads of this teacher are then trained first",
        )
