"""The key layout of timm: plain, and with registers, where the position of the class token is added to it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SWIGLU = {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}


def is_timm_layout(found: Mapping[str, Tensor]) -> bool:
    """Whether tensors, which are not in the layout of transformers, are in that of timm."""
    return "reg_token" in found or _has_packed_swiglu(found) or "mask_token" not in found


def from_timm(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in official keys."""
    rename = _renamer({theirs: ours for ours, theirs in SWIGLU.items()}) if _has_packed_swiglu(found) else str
    official = {rename(key): tensor for key, tensor in found.items()}
    if "reg_token" in official:
        official["register_tokens"] = official.pop("reg_token")
    positions = official.get("pos_embed")
    if positions is not None and positions.ndim == 3 and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        # The class token already has its position added: a position of zeros gives the same sum.
        official["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return official


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in keys that timm reads; it has no mask token."""
    rename = _renamer(SWIGLU)
    exported = {rename(key): tensor for key, tensor in tensors.items() if key != "mask_token"}
    if "register_tokens" in exported:
        exported["reg_token"] = exported.pop("register_tokens")
        positions = exported["pos_embed"]
        exported["cls_token"] = exported["cls_token"] + positions[:, :1]
        exported["pos_embed"] = positions[:, 1:]
    return exported


def _renamer(names: Mapping[str, str]) -> Callable[[str], str]:
    pattern = re.compile(r"(?<=\.)(" + "|".join(re.escape(name) for name in names) + r")(?=\.(?:weight|bias)$)")
    return lambda key: pattern.sub(lambda match: names[match[1]], key)


def _has_packed_swiglu(found: Mapping[str, Tensor]) -> bool:
    """Whether `fc1` holds gate and value together, as timm keeps SwiGLU: twice as many rows as `fc2` has columns."""
    first, second = found.get("blocks.0.mlp.fc1.weight"), found.get("blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and first.ndim == second.ndim == 2 and first.shape[0] == 2 * second.shape[1]
