"""Parameter groups, their learning rates, and gradient clipping.

Source: official dinov2/utils/param_groups.py and dinov2/train/train.py.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dino_extract.finetuning.config import OptimConfig
from dino_extract.finetuning.schedules import ScheduleValues

_BEFORE_BLOCKS = ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")


@dataclass(frozen=True)
class Multipliers:
    """How one parameter departs from the scheduled learning rate and weight decay.

    Args:
        lr_multiplier: factor of the learning rate.
        wd_multiplier: factor of the weight decay, 0 or 1.
        is_last_layer: whether the parameter belongs to the prototypes, which stay frozen at first.
    """

    lr_multiplier: float
    wd_multiplier: float
    is_last_layer: bool


def multipliers(name: str, depth: int, config: OptimConfig) -> Multipliers:
    """The factors of the parameter called `name` in the student, such as `backbone.blocks.0.attn.qkv.weight`.

    Biases, norms and LayerScale are not decayed; position embeddings, tokens and prototype gains are, as in the official code.

    Args:
        name: parameter name, starting with `backbone.` or with the name of a head.
        depth: blocks of the backbone; each block further from the output multiplies the rate by `layerwise_decay` once more.
        config: the decay and the multiplier of the patch embedding.
    """
    lr = config.layerwise_decay ** (depth + 1 - _layer_id(name, depth)) if name.startswith("backbone.") else 1.0
    if "patch_embed" in name:
        lr *= config.patch_embed_lr_mult
    is_undecayed = name.endswith(".bias") or "norm" in name or "gamma" in name
    return Multipliers(lr, 0.0 if is_undecayed else 1.0, "last_layer" in name)


def param_groups(network: nn.Module, depth: int, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups for AdamW, one for each distinct set of multipliers, in a fixed order.

    Each has `params` and the fields of `Multipliers`. Parameters with `requires_grad` off are included, so that a frozen part can be
    released without touching the optimizer's state.
    """
    groups: dict[Multipliers, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault(multipliers(name, depth, config), []).append(parameter)
    return [{"params": parameters, **asdict(factors)} for factors, parameters in groups.items()]


def build_optimizer(network: nn.Module, depth: int, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `param_groups`; rates and decay are set at each step by `apply_schedule`."""
    betas = (config.adamw_beta1, config.adamw_beta2)
    is_cuda = next(network.parameters()).is_cuda
    return torch.optim.AdamW(param_groups(network, depth, config), lr=0.0, betas=betas, fused=is_cuda or None)


def apply_schedule(optimizer: torch.optim.Optimizer, values: ScheduleValues) -> None:
    """Set each group's learning rate and weight decay for the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = (values.last_layer_lr if group["is_last_layer"] else values.lr) * group["lr_multiplier"]
        group["weight_decay"] = values.weight_decay * group["wd_multiplier"]


def clip_grad_per_submodule(network: nn.Module, clip_grad: float) -> dict[str, Tensor]:
    """Scale the gradients of the backbone and of each head, separately, to a norm of at most `clip_grad`; their norms before.

    Returns:
        () float32 for each direct child of `network` that has a gradient.
    """
    norms = {}
    for name, module in network.named_children():
        parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
        if parameters:
            # All tensors in a few calls, asked for: torch does so by itself with plain ones, not with shared-out ones.
            norms[name] = nn.utils.clip_grad_norm_(parameters, clip_grad, foreach=True)
    return norms


def _layer_id(name: str, depth: int) -> int:
    if any(part in name for part in _BEFORE_BLOCKS):
        return 0
    block = re.search(r"\.blocks\.(\d+)\.", name)
    return int(block.group(1)) + 1 if block else depth + 1
