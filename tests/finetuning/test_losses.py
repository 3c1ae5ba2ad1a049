"""The loss terms equal the official ones and a loop-by-loop transcription of their equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dino_extract.finetuning.config import HeadConfig, ObjectiveConfig
from dino_extract.finetuning.losses import Center, dino_loss, ibot_patch_loss, koleo_loss, sinkhorn_knopp, softmax_center
from dino_extract.finetuning.objective import Objective, TeacherTargets
from dino_extract.finetuning.student_teacher import StudentOutput
from tests.finetuning import golden, naive


@pytest.fixture(scope="module")
def losses() -> dict[str, Tensor]:
    """Official inputs and outputs of every loss term."""
    return golden.read(golden.GOLDEN / "losses.safetensors")[1]


@pytest.mark.parametrize("temp", ["0.04", "0.07"])
def test_sinkhorn_targets_equal_the_official_ones(losses: dict[str, Tensor], temp: str) -> None:
    """Sinkhorn-Knopp of CLS scores equals the official one."""
    got = sinkhorn_knopp(losses["dino.teacher_logits"], float(temp), 3)

    torch.testing.assert_close(got, losses[f"dino.sinkhorn_teacher_temp{temp}"], rtol=1e-4, atol=1e-6)


def test_sinkhorn_targets_of_masked_patches_equal_the_official_ones(losses: dict[str, Tensor]) -> None:
    """Sinkhorn-Knopp of masked patches equals the official one."""
    got = sinkhorn_knopp(losses["ibot.teacher_logits"], 0.05, 3)

    torch.testing.assert_close(got, losses["ibot.sinkhorn_teacher_temp0.05"], rtol=1e-4, atol=1e-6)


def test_centre_and_centred_targets_equal_the_official_ones(losses: dict[str, Tensor]) -> None:
    """Targets centred by the first centre equal the official ones, and the update leads to the second centre."""
    center = Center(96, momentum=0.9)
    center.value = losses["dino.center0"]

    got = softmax_center(losses["dino.teacher_logits"], center.value, 0.04)
    center.update(losses["dino.teacher_logits"])

    torch.testing.assert_close(center.value, losses["dino.center1"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got, losses["dino.softmax_center_teacher_temp0.04"], rtol=1e-4, atol=1e-6)


def test_dino_loss_equals_the_official_one(losses: dict[str, Tensor]) -> None:
    """The sum over all pairs equals the official one for the targets that the golden file was made with."""
    targets = losses["dino.sinkhorn_teacher_temp0.04"].unflatten(0, (2, -1))
    centred = losses["dino.softmax_center_teacher_temp0.04"].unflatten(0, (2, -1))
    warmer = losses["dino.sinkhorn_teacher_temp0.07"].unflatten(0, (2, -1))

    got = [dino_loss(losses["dino.student_logits"], probs).item() for probs in (targets, centred, warmer)]

    assert any(value == pytest.approx(losses["dino.loss_all_pairs_sum"].item(), rel=1e-5) for value in got), got


def test_ibot_loss_equals_the_official_one(losses: dict[str, Tensor]) -> None:
    """The masked-patch loss equals the official one; images without a mask count in the divisor."""
    got = ibot_patch_loss(losses["ibot.student_logits"], losses["ibot.sinkhorn_teacher_temp0.05"], losses["ibot.mask"])

    torch.testing.assert_close(got, losses["ibot.loss"].squeeze(), rtol=1e-5, atol=0)


def test_koleo_loss_and_gradient_equal_the_official_ones(losses: dict[str, Tensor]) -> None:
    """KoLeo and its gradient equal the official ones."""
    tokens = losses["koleo.input"].clone().requires_grad_()

    got = koleo_loss(tokens)
    got.backward()

    torch.testing.assert_close(got, losses["koleo.loss"].squeeze(), rtol=1e-5, atol=0)
    torch.testing.assert_close(tokens.grad, losses["koleo.grad"], rtol=1e-4, atol=1e-6)


def test_koleo_stays_finite_for_equal_images_in_half_precision() -> None:
    """Two equal float16 tokens give a finite loss and finite gradients."""
    tokens = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).half()
    tokens[1] = tokens[0]
    tokens.requires_grad_()

    loss = koleo_loss(tokens)
    loss.backward()

    assert loss.isfinite()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


def test_koleo_equals_its_equation() -> None:
    """KoLeo equals the equation written out in float64."""
    tokens = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))

    got = koleo_loss(tokens)

    assert got.item() == pytest.approx(naive.koleo(tokens.tolist()), rel=1e-5)


def test_sinkhorn_equals_its_equation() -> None:
    """Sinkhorn-Knopp equals the alternation written out in float64."""
    scores = torch.randn(6, 9, generator=torch.Generator().manual_seed(2)) * 0.3

    got = sinkhorn_knopp(scores, 0.05, 3)

    want = torch.tensor(naive.sinkhorn(scores.tolist(), 0.05, 3))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


def test_sinkhorn_of_large_scores_does_not_overflow() -> None:
    """Scores whose exponential overflows float32 still give rows that sum to 1."""
    scores = torch.randn(8, 4, generator=torch.Generator().manual_seed(3)) * 0.5 + 20

    got = sinkhorn_knopp(scores, 0.04)

    torch.testing.assert_close(got.sum(dim=1), torch.ones(8))


def test_sinkhorn_of_no_row_is_empty() -> None:
    """A rank without a masked patch gets no target and no error."""
    assert sinkhorn_knopp(torch.zeros(0, 4), 0.04).shape == (0, 4)


def test_objective_equals_the_paper_written_out() -> None:
    """DINO and iBOT terms of the objective equal the loops over crops, images, patches and prototypes."""
    generator = torch.Generator().manual_seed(4)
    global_logits, local_logits = torch.randn(2, 3, 5, generator=generator) * 0.2, torch.randn(4, 3, 5, generator=generator) * 0.2
    masks = torch.zeros(6, 4, dtype=torch.bool)
    masks[1, :2] = masks[4, 1:] = True
    masked_logits, tokens = torch.randn(5, 5, generator=generator) * 0.2, torch.randn(2, 3, 8, generator=generator)
    cls = torch.softmax(torch.randn(2, 3, 5, generator=generator), -1)
    patch_targets = torch.softmax(torch.randn(5, 5, generator=generator), -1)
    head = HeadConfig(5, 4, 4)

    got = Objective(ObjectiveConfig(dino_head=head)).losses(
        StudentOutput(tokens, global_logits, local_logits, masked_logits, tokens.unsqueeze(2)), TeacherTargets(cls, patch_targets), masks
    )

    local, both = naive.dino_local_and_global(global_logits.tolist(), local_logits.tolist(), cls.tolist(), 0.1)
    assert got.dino_local.item() == pytest.approx(local, rel=1e-5)
    assert got.dino_global.item() == pytest.approx(both, rel=1e-5)
    assert got.ibot.item() == pytest.approx(naive.ibot(masked_logits.tolist(), patch_targets.tolist(), masks.tolist(), 0.1), rel=1e-5)
    assert got.koleo.item() == pytest.approx(0.1 * sum(naive.koleo(crop.tolist()) for crop in tokens), rel=1e-5)


def test_a_certain_and_right_student_has_no_loss() -> None:
    """A student that puts all its mass where the teacher does has a loss of zero."""
    target = one_hot(torch.tensor([[0, 2]]), 3).float()

    assert dino_loss(target * 100, target).item() == pytest.approx(0, abs=1e-6)
