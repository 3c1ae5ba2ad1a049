"""Two processes with half a batch each take the same step as one with all of it."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

from dino_extract.finetuning.losses import Center, koleo_loss, sinkhorn_knopp
from tests.finetuning import golden, ranks


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ranks.Parts]:
    """What two gloo processes gave, by the name of what they did."""
    return ranks.in_two_processes(tmp_path_factory.mktemp("ranks"))


def test_sinkhorn_and_centre_of_uneven_parts_equal_those_of_the_whole(done: dict[str, ranks.Parts]) -> None:
    """Targets and centre do not depend on how masked patches are spread over ranks."""
    center = Center(12)
    center.update(ranks.rows())

    parts = done["sinkhorn_of_uneven_parts"]

    torch.testing.assert_close(torch.cat([part["targets"] for part in parts]), sinkhorn_knopp(ranks.rows(), 0.05, 3))
    for part in parts:
        torch.testing.assert_close(part["center"], center.value)


def test_koleo_over_two_ranks_equals_koleo_of_the_whole(done: dict[str, ranks.Parts]) -> None:
    """Loss and gradient are those of the whole batch on one process."""
    whole = ranks.rows()[:6].clone().requires_grad_()
    loss = koleo_loss(whole)
    loss.backward()

    parts = done["koleo_of_halves"]

    torch.testing.assert_close(parts[0]["loss"], loss.detach())
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts]), whole.grad)


def test_rows_are_gathered_in_rank_order(done: dict[str, ranks.Parts]) -> None:
    """Each rank sees rank 0's rows first and knows where its own begin."""
    parts = done["gathered_rows"]

    assert [part["rows"].flatten().tolist() for part in parts] == [[0, 0, 1, 1]] * 2
    assert [part["first"].item() for part in parts] == [0, 2]


@pytest.mark.parametrize(
    ("variant", "work"),
    [
        ("sinkhorn_separate_heads", ranks.half_of_a_sinkhorn_step),
        ("centering_shared_head", ranks.half_of_a_centering_step),
        ("sinkhorn_separate_heads", ranks.half_of_a_sharded_step),
    ],
)
def test_a_step_on_two_halves_equals_the_step_on_the_whole(done: dict[str, ranks.Parts], variant: str, work: ranks.Work) -> None:
    """Losses, gradients and the teacher after a step on two ranks, by DDP or FSDP, equal those of one process with all images."""
    whole = ranks.one_step(variant, slice(0, 4), None)

    parts = done[work.__name__]

    for name, want in whole.items():
        got = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_two_ranks_distil_as_one(done: dict[str, ranks.Parts]) -> None:
    """Three steps of distillation on two ranks, where the mask token never has a gradient, have the losses of one process."""
    whole = ranks.three_steps_of_distillation(slice(0, 4), None)

    parts = done["half_of_a_distillation"]

    assert len({round(loss.item(), 3) for loss in whole.values()}) == 3, "each step moves the student"
    for name, want in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, want, rtol=1e-4, atol=0)


def test_sharding_finds_what_the_student_gives() -> None:
    """The student's tokens and scores are leaves of a tree to PyTorch: before 2.15 FSDP gathers weights for no other gradients."""
    spec, tensors = golden.read(golden.GOLDEN / "train_step_sinkhorn_separate_heads.safetensors")
    step = golden.training_step(spec, tensors)

    given = step.student(golden.batch(tensors, 0))

    assert [id(leaf) for leaf in tree_leaves(given) if leaf.requires_grad] == [id(tensor) for tensor in given]
