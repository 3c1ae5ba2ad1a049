"""Schedules give the official values at every step."""

from __future__ import annotations

import numpy as np
import pytest

from dino_extract.finetuning.config import ScheduleConfig
from dino_extract.finetuning.schedules import cosine_schedule, scaled_lr, schedule_values


def test_cosine_equals_the_array_that_the_official_code_stores() -> None:
    """Frozen, warm-up and cosine parts equal the concatenation of zeros, linspace and half a cosine."""
    base, final, total, warmup, frozen = 2.0, 0.1, 50, 7, 3
    steps = np.arange(total - warmup - frozen)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    want = np.concatenate([np.zeros(frozen), np.linspace(0.5, base, warmup), cosine, [final] * 5])

    got = [cosine_schedule(step, base, final, total, warmup=warmup, warmup_from=0.5, frozen=frozen) for step in range(total + 5)]

    assert got == pytest.approx(want)


def test_prototypes_are_frozen_for_the_first_steps_only() -> None:
    """The last layer's learning rate is 0 before step 4 and the common one from there."""
    config = ScheduleConfig(warmup_steps=2, freeze_last_layer_steps=4)

    values = [schedule_values(config, 1.0, step, 10) for step in range(10)]

    assert [value.last_layer_lr for value in values[:4]] == [0] * 4
    assert all(value.last_layer_lr == value.lr > 0 for value in values[4:])


def test_teacher_temperature_rises_and_stays() -> None:
    """The teacher temperature goes from 0.04 to 0.07 over its warm-up and stays there."""
    config = ScheduleConfig(warmup_teacher_temp_steps=4)

    temps = [schedule_values(config, 1.0, step, 10).teacher_temp for step in range(10)]

    assert temps == pytest.approx([0.04, 0.05, 0.06, 0.07, *[0.07] * 6])


def test_learning_rate_grows_with_the_square_root_of_the_batch() -> None:
    """A batch of 2048 has sqrt(2) times the rate of 1024."""
    assert scaled_lr(0.004, 2048) == pytest.approx(5.657e-3, rel=1e-3)
