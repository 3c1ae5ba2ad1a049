"""One training step equals the official one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dino_extract.finetuning.losses import anchor_loss
from dino_extract.finetuning.optim import multipliers
from dino_extract.finetuning.step import DivergedError, TrainingStep
from tests.fake_gpu import CUDA, Traffic
from tests.finetuning import golden

Golden = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture(params=golden.TRAIN_STEPS, scope="module")
def step_file(request: pytest.FixtureRequest) -> Golden:
    """Two consecutive official training steps."""
    return golden.read(golden.GOLDEN / f"train_step_{request.param}.safetensors")


def test_losses_and_gradient_norms_of_both_steps_equal_the_official_ones(step_file: Golden) -> None:
    """Every loss term and every submodule's gradient norm equals the official one to 1e-5 relative, in both steps."""
    spec, tensors = step_file
    step = golden.training_step(spec, tensors)

    for number, want in enumerate(spec["steps"]):
        result = step(golden.batch(tensors, number), golden.values(spec, number))

        assert {name: loss.item() for name, loss in result.losses.official().items()} == pytest.approx(want["losses"], rel=1e-5)
        assert {name: norm.item() for name, norm in result.grad_norms.items()} == pytest.approx(want["grad_norm_before_clip"], rel=1e-5)


def test_gradients_of_the_first_step_equal_the_official_ones(step_file: Golden) -> None:
    """Every parameter's gradient equals the official one to 1e-5."""
    spec, tensors = step_file
    step = golden.training_step(spec, tensors)

    step.backward(golden.batch(tensors, 0), golden.values(spec, 0).teacher_temp)

    got = {name: parameter.grad for name, parameter in step.models.student.named_parameters()}
    torch.testing.assert_close(got, golden.under(tensors, "step0.grad."), rtol=0, atol=1e-5)


def test_student_and_teacher_after_two_steps_equal_the_official_ones(step_file: Golden) -> None:
    """Every weight of student and teacher equals the official one to 1e-5 after two steps, where its gradient is not rounding."""
    spec, tensors = step_file
    step = golden.training_step(spec, tensors)

    for number in range(2):
        step(golden.batch(tensors, number), golden.values(spec, number))

    gradients = golden.under(tensors, "step0.grad.")
    for name, want in golden.under(tensors, "step1.after.student.").items():
        # Adam divides the gradient by its own size: below 1e-7 (key biases, whose exact gradient is 0) it magnifies the rounding of
        # whoever computed it. In float64 those few weights are as far from the official ones as ours are.
        is_signal = gradients[name].abs() >= 1e-7
        got = step.models.student.state_dict()[name]
        torch.testing.assert_close(got[is_signal], want[is_signal], rtol=0, atol=1e-5)
        torch.testing.assert_close(got, want, rtol=0, atol=5e-4)
    torch.testing.assert_close(dict(step.models.teacher.state_dict()), golden.under(tensors, "step1.after.teacher."), rtol=0, atol=1e-5)


def test_weights_compared_to_1e_5_are_nearly_all(step_file: Golden) -> None:
    """Fewer than 1 % of the weights have a gradient so small that it is rounding."""
    _, tensors = step_file

    gradients = torch.cat([gradient.flatten() for name, gradient in golden.under(tensors, "step0.grad.").items()])

    assert (gradients.abs() < 1e-7).float().mean() < 0.01


@pytest.mark.parametrize("number", [0, 1])
def test_centres_equal_the_official_ones(number: int) -> None:
    """The centres of CLS tokens and of masked patches equal the official ones to 1e-5 relative after each step."""
    spec, tensors = golden.read(golden.GOLDEN / "train_step_centering_shared_head.safetensors")
    step = golden.training_step(spec, tensors)

    for earlier in range(number + 1):
        step(golden.batch(tensors, earlier), golden.values(spec, earlier))

    for name, center in [("dino", step.objective.dino_center), ("ibot", step.objective.ibot_center)]:
        want = tensors[f"step{number}.after.{name}_center"].flatten()
        torch.testing.assert_close(center.value.flatten(), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def test_parameter_groups_equal_the_official_ones(step_file: Golden) -> None:
    """Every parameter has the official multipliers of learning rate and weight decay."""
    spec, tensors = step_file
    step = golden.training_step(spec, tensors)

    got = {name: multipliers(name, spec["backbone"]["depth"], step.optim) for name, _ in step.models.student.named_parameters()}

    for group in spec["param_groups"]:
        for name in group["params"]:
            factors = got.pop(name)
            assert factors.lr_multiplier == pytest.approx(group["lr_multiplier"], rel=1e-12)
            assert (factors.wd_multiplier, factors.is_last_layer) == (group["wd_multiplier"], group["is_last_layer"])
    assert not got


def test_frozen_prototypes_do_not_move_in_the_first_step(step_file: Golden) -> None:
    """With a last-layer learning rate of 0 the prototypes keep their weights while the rest of the head moves."""
    spec, tensors = step_file
    step = golden.training_step(spec, tensors)

    step(golden.batch(tensors, 0), golden.values(spec, 0))

    after, before = step.models.student.state_dict(), golden.under(tensors, "init.student.")
    assert torch.equal(after["dino_head.last_layer.weight_v"], before["dino_head.last_layer.weight_v"])
    assert not torch.equal(after["dino_head.mlp.0.weight"], before["dino_head.mlp.0.weight"])


def test_accumulating_a_batch_twice_gives_the_gradients_of_once() -> None:
    """Two backward passes that count one half each give the gradients of one that counts whole."""
    spec, tensors = golden.read(golden.GOLDEN / "train_step_sinkhorn_separate_heads.safetensors")
    step = golden.training_step(spec, tensors)

    for is_last in (False, True):
        step.backward(golden.batch(tensors, 0), golden.values(spec, 0).teacher_temp, share=0.5, is_last=is_last)

    got = {name: parameter.grad for name, parameter in step.models.student.named_parameters()}
    torch.testing.assert_close(got, golden.under(tensors, "step0.grad."), rtol=0, atol=1e-5)


def test_mixed_precision_stays_close(step_file: Golden) -> None:
    """With bfloat16 products the losses, taken in float32, are within 2 % of the official ones."""
    spec, tensors = step_file
    step = golden.training_step(spec, tensors)
    step.dtype = torch.bfloat16

    losses = step.backward(golden.batch(tensors, 0), golden.values(spec, 0).teacher_temp).official()

    assert {name: loss.dtype for name, loss in losses.items()} == dict.fromkeys(losses, torch.float32)
    assert sum(loss.item() for loss in losses.values()) == pytest.approx(sum(spec["steps"][0]["losses"].values()), rel=0.02)


def test_a_gpu_is_not_waited_for_before_the_gradients(step_file: Golden) -> None:
    """Tokens, targets and losses of a batch on a GPU need nothing of the host, whose only question is whether gradients are finite."""
    spec, tensors = step_file
    step, batch = golden.training_step(spec, tensors), golden.batch(tensors, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu = replace(batch, **{entry.name: getattr(batch, entry.name).to(CUDA) for entry in fields(batch) if entry.name != "hide"})
        step = TrainingStep(step.models, step.objective.config, step.optim, device=CUDA)

        with Traffic() as traffic:
            targets = step.objective.targets(step.models.teacher.teach(on_gpu), 0.04)
            losses = step.objective.losses(step.student(on_gpu), targets, on_gpu.masks)

    assert traffic.seen == []
    assert losses.total.device.type == "cuda"
    assert step.optimizer.defaults["fused"]


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    """A NaN gradient is an error that names the part, and no weight has moved."""
    spec, tensors = golden.read(golden.GOLDEN / "train_step_sinkhorn_separate_heads.safetensors")
    step = golden.training_step(spec, tensors)
    step.backward(golden.batch(tensors, 0), golden.values(spec, 0).teacher_temp)
    step.models.student.ibot_head.last_layer.weight_v.grad[0, 0] = torch.nan

    with pytest.raises(DivergedError, match="the gradient of ibot_head is NaN or infinite"):
        step.update(golden.values(spec, 0))

    torch.testing.assert_close(dict(step.models.student.state_dict()), golden.under(tensors, "init.student."), rtol=0, atol=0)
    torch.testing.assert_close(dict(step.models.teacher.state_dict()), golden.under(tensors, "init.teacher."), rtol=0, atol=0)


def test_the_anchor_is_zero_where_the_student_is_the_start() -> None:
    """The distance to the starting features is 0 for equal features and 4 for opposite ones."""
    cls, patches, masks = torch.randn(4, 8), torch.randn(4, 6, 8), torch.zeros(4, 6, dtype=torch.bool)

    assert anchor_loss(cls, patches, cls, patches, masks).item() == pytest.approx(0, abs=1e-6)
    assert anchor_loss(cls, patches, -cls, -patches, masks).item() == pytest.approx(4, abs=1e-5)
