"""A GPU that is not there: torch follows shapes, dtypes and devices of its tensors, and this the traffic with the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda")
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2"}


class Traffic(TorchDispatchMode):
    """Within a `FakeTensorMode`, the names of operations that move data between host and GPU, or make the host wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, given)) if isinstance(leaf, Tensor)}
        if len(devices) > 1 or func._schema.name in WAITING:
            self.seen.append(func._schema.name)
        return given
