"""On a GPU a run does what it does on a CPU, to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dino_extract.engine import forbid_tf32
from dino_extract.finetuning.loop import train
from dino_extract.finetuning.step import TrainingStep
from tests.finetuning import golden, runs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two small JPEGs, two of them broken."""
    return runs.make_pictures(tmp_path_factory.mktemp("photos") / "pictures", 22, broken=2)


def losses(output: Path) -> list[float]:
    """The loss of each step of a run."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("variant", golden.TRAIN_STEPS)
def test_two_steps_equal_the_official_ones(variant: str) -> None:
    """In float32 every loss term and every gradient norm of two steps equals the official one to 1e-3 relative."""
    forbid_tf32()
    spec, tensors = golden.read(golden.GOLDEN / f"train_step_{variant}.safetensors")
    made = golden.training_step(spec, tensors)
    step = TrainingStep(made.models, made.objective.config, made.optim, device=CUDA)

    for number, want in enumerate(spec["steps"]):
        result = step(golden.batch(tensors, number).to(CUDA), golden.values(spec, number))

        assert {name: loss.item() for name, loss in result.losses.official().items()} == pytest.approx(want["losses"], rel=1e-3)
        assert {name: norm.item() for name, norm in result.grad_norms.items()} == pytest.approx(want["grad_norm_before_clip"], rel=1e-3)


def test_a_run_has_the_losses_of_the_cpu(pictures: Path, tmp_path: Path) -> None:
    """Crops, masks, substitutes of broken images and steps give in float32 the losses that they give on a CPU."""
    for device in ("cpu", "cuda"):
        train(runs.small_config(pictures, tmp_path / device, steps=3, device=device))

    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


def test_a_run_that_was_stopped_continues(pictures: Path, tmp_path: Path) -> None:
    """In bfloat16, with paths dropped and blocks recomputed, a run that lost its last steps ends with the same weights to rounding."""
    options: dict[str, Any] = {"steps": 6, "checkpoint_steps": 2, "drop_path_rate": 0.3, "checkpoint_blocks": True}
    config = runs.small_config(pictures, tmp_path / "run", device="cuda", **{**options, "dtype": "bfloat16"})
    train(config)
    model = tmp_path / "run" / "model.safetensors"
    want, straight = load_file(model), losses(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-0000006.pt").unlink()

    train(config)

    assert losses(tmp_path / "run") == pytest.approx(straight, rel=1e-2)
    for name, weight in load_file(model).items():
        torch.testing.assert_close(weight, want[name], rtol=1e-2, atol=1e-3)
