"""What each of two processes does in the tests, in a module that a fresh process can import."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, distributed, multiprocessing

from dino_extract.finetuning.distributed import ProcessGroup, all_gather_rows, sum_over_ranks, whole, world
from dino_extract.finetuning.losses import Center, koleo_loss, sinkhorn_knopp
from dino_extract.finetuning.student_teacher import CropBatch
from tests.finetuning import golden

Work = Callable[[int], dict[str, Tensor]]
Parts = list[dict[str, Tensor]]  # what each rank gave


def in_two_processes(folder: Path) -> dict[str, Parts]:
    """What each function of `WORK` gave on each of two gloo processes, which do one after the other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_entry, (port, folder), nprocs=2)
    given = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {name: [part[name] for part in given] for name in given[0]}


def _entry(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save({work.__name__: work(rank) for work in WORK}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def rows() -> Tensor:
    """Seven rows that two ranks share unevenly."""
    return torch.randn(7, 12, generator=torch.Generator().manual_seed(0)) * 0.3


def sinkhorn_of_uneven_parts(rank: int) -> dict[str, Tensor]:
    """Sinkhorn and centre update of rows 0-1 on rank 0 and 2-6 on rank 1."""
    part = rows()[:2] if rank == 0 else rows()[2:]
    center = Center(12)
    center.update(part, world())
    return {"targets": sinkhorn_knopp(part, 0.05, 3, world()), "center": center.value}


def koleo_of_halves(rank: int) -> dict[str, Tensor]:
    """KoLeo of rows 0-2 or 3-5, with neighbours among all six."""
    part = rows()[rank * 3 : rank * 3 + 3].clone().requires_grad_()
    loss = koleo_loss(part, group=world())
    (loss / 2).backward()  # the gradient of the mean over ranks
    assert part.grad is not None
    return {"loss": sum_over_ranks(loss.detach(), world()) / 2, "grad": part.grad}


def gathered_rows(rank: int) -> dict[str, Tensor]:
    """All rows, and where this rank's begin."""
    everyone, first = all_gather_rows(torch.full((2, 1), float(rank)), world())
    return {"rows": everyone, "first": torch.tensor(first)}


def four_images(tensors: dict[str, Tensor], images: slice, *, hide: bool = True) -> CropBatch:
    """Some of four images: the three of golden step 0 and the first of step 1."""
    parts = []
    for name in ("global_crops", "local_crops", "masks"):
        first, second = (tensors[f"step{step}.collated_{name}"].unflatten(0, (-1, 3)) for step in range(2))
        parts.append(torch.cat([first, second[:, :1]], dim=1)[:, images].flatten(0, 1))
    return CropBatch.make(*parts, hide=hide)


def one_step(variant: str, images: slice, group: ProcessGroup, parallel: Literal["ddp", "fsdp"] = "ddp") -> dict[str, Tensor]:
    """Losses, gradients and teacher of one step on some of four images."""
    spec, tensors = golden.read(golden.GOLDEN / f"train_step_{variant}.safetensors")
    step = golden.training_step(spec, tensors, group, parallel)
    losses = step.backward(four_images(tensors, images), 0.04)
    result = {f"loss.{name}": loss.detach() for name, loss in losses.official().items()}
    result |= {
        f"grad.{name}": whole(parameter.grad).clone()
        for name, parameter in step.models.student.named_parameters()
        if parameter.grad is not None
    }
    step.update(golden.values(spec, 0))
    return result | {f"teacher.{name}": whole(weight) for name, weight in step.models.teacher.state_dict().items()}


def three_steps_of_distillation(images: slice, group: ProcessGroup) -> dict[str, Tensor]:
    """Losses of three steps on some of four images with a frozen teacher; nothing is hidden from the student."""
    spec, tensors = golden.read(golden.GOLDEN / "train_step_sinkhorn_separate_heads.safetensors")
    step = golden.training_step(spec, tensors, group, distils=True)
    batch = four_images(tensors, images, hide=False)
    return {f"step{number}": step(batch, golden.values(spec, 0)).losses.total.detach() for number in range(3)}


def half_of_a_sinkhorn_step(rank: int) -> dict[str, Tensor]:
    """One step with untied heads and Sinkhorn-Knopp on two of four images."""
    return one_step("sinkhorn_separate_heads", slice(2 * rank, 2 * rank + 2), world())


def half_of_a_centering_step(rank: int) -> dict[str, Tensor]:
    """One step with a tied head and centring on two of four images."""
    return one_step("centering_shared_head", slice(2 * rank, 2 * rank + 2), world())


def half_of_a_sharded_step(rank: int) -> dict[str, Tensor]:
    """The same with untied heads and the networks shared out over both ranks."""
    return one_step("sinkhorn_separate_heads", slice(2 * rank, 2 * rank + 2), world(), "fsdp")


def half_of_a_distillation(rank: int) -> dict[str, Tensor]:
    """Three steps of distillation on two of four images."""
    return three_steps_of_distillation(slice(2 * rank, 2 * rank + 2), world())


WORK: list[Work] = [
    sinkhorn_of_uneven_parts,
    koleo_of_halves,
    gathered_rows,
    half_of_a_sinkhorn_step,
    half_of_a_centering_step,
    half_of_a_sharded_step,
    half_of_a_distillation,
]
