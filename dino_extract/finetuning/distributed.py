"""Sums, maxima and rows over the processes of a run; with group None each is the identity."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

ProcessGroup = distributed.ProcessGroup | None


def world() -> ProcessGroup:
    """The group of all ranks, or None where this is the only process."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return distributed.group.WORLD
    return None


def rank() -> int:
    """This process's number among all of the run, from 0."""
    return distributed.get_rank() if world() is not None else 0


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes of the run this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def world_size() -> int:
    """How many processes the run has."""
    return distributed.get_world_size() if world() is not None else 1


def start(device: torch.device) -> None:
    """Join the processes that `torchrun` started, if it started this one."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        is_cuda = device.type == "cuda"
        # The others wait while the first rank looks at its evaluation images and saves.
        distributed.init_process_group("nccl" if is_cuda else "gloo", device_id=device if is_cuda else None, timeout=timedelta(hours=1))


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world() is not None:
        distributed.barrier()


def stop() -> None:
    """Leave the process group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def sum_over_ranks(value: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of `value` over the ranks, on each of them; a new tensor."""
    if group is None:
        return value
    total = value.clone()
    distributed.all_reduce(total, op=distributed.ReduceOp.SUM, group=group)
    return total


def max_over_ranks(value: Tensor, group: ProcessGroup) -> Tensor:
    """The largest `value` of all ranks, on each of them; a new tensor."""
    if group is None:
        return value
    largest = value.clone()
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX, group=group)
    return largest


def union_over_ranks(entries: dict[int, str]) -> dict[int, str]:
    """The entries of all ranks together, on each of them; every rank must call it."""
    if world() is None:
        return entries
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, entries)
    return {key: value for part in parts for key, value in part.items()}


def all_gather_rows(rows: Tensor, group: ProcessGroup) -> tuple[Tensor, int]:
    """The rows of all ranks in rank order, differentiable, and the index of this rank's first row.

    Args:
        rows: (R, ...) float, the same R on every rank.
        group: ranks to gather from.
    """
    if group is None:
        return rows, 0
    gathered: Tensor = _GatherRows.apply(rows, group)
    return gathered, distributed.get_rank(group) * len(rows)


def shard(network: nn.Module, parts: Iterable[nn.Module], device: torch.device) -> None:
    """Share the weights of `network` out over all ranks in place, unit by unit, so that each holds a part of every tensor.

    Args:
        network: whose forward pass, and `teach` where it has one, gather what they need.
        parts: modules gathered one at a time; what is in none of them is gathered with the network.
        device: where the network is.
    """
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # which nothing here changes in place
    mesh = init_device_mesh(device.type, (world_size(),))
    for part in parts:
        fully_shard(part, mesh=mesh)
    # A root that is only ever run forward, as a teacher is, would otherwise stay gathered and could not be updated.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    if hasattr(network, "teach"):
        register_fsdp_forward_method(network, "teach")


def whole(tensor: Tensor) -> Tensor:
    """A shared-out tensor put together, on every rank; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor shared out as `model` is."""
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements) if isinstance(model, DTensor) else tensor


class _GatherRows(torch.autograd.Function):
    """All ranks' rows end to end; the gradient of a row is the sum over ranks of what each made of it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group, ctx.count = group, len(rows)  # type: ignore[attr-defined]
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        group, count = ctx.group, ctx.count  # type: ignore[attr-defined]
        total = sum_over_ranks(grads[0].contiguous(), group)
        first = distributed.get_rank(group) * count
        return total[first : first + count], None
