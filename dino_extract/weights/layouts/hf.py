"""The key layout of transformers (Dinov2 and Dinov2WithRegisters): the names in files, and those in the memory of transformers 5."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

PATCH_EMBEDDING = "embeddings.patch_embeddings.projection.weight"

# By official name: the names in files, then those in the memory of transformers 5.
TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
BLOCK = {
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "ls1.gamma": ("layer_scale1.lambda1",),
    "ls2.gamma": ("layer_scale2.lambda1",),
    "mlp.w12": ("mlp.weights_in",),
    "mlp.w3": ("mlp.weights_out", "mlp.down_proj"),
}
# Official tensors that are several in this layout, in the order of their rows.
FUSED = {
    "attn.qkv": (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    "mlp.w12": (("mlp.gate_proj", "mlp.up_proj"),),
}

KINDS = ("", ".weight", ".bias")


def from_hf(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in official keys; a key that is not known keeps its name, so that it is reported."""
    left = dict(found)
    official = {ours: left.pop(theirs) for ours, theirs in TOP.items() if theirs in left}
    for block in sorted({match[1] for key in found if (match := re.match(r"encoder\.layer\.(\d+)\.", key))}, key=int):
        for ours, theirs in _candidates():
            key, names = f"blocks.{block}.{ours}", [f"encoder.layer.{block}.{name}" for name in theirs]
            if key not in official and all(name in left for name in names):
                parts = [left.pop(name) for name in names]
                official[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
    # The rest of a block has the official names.
    return official | {re.sub(r"^encoder\.layer\.(\d+)\.", r"blocks.\1.", key): tensor for key, tensor in left.items()}


def _candidates() -> Iterator[tuple[str, list[str]]]:
    """Official names in a block, each with the names here of the tensors that it is made of; the first that are all there count."""
    for ours, variants in FUSED.items():
        yield from ((ours + kind, [part + kind for part in parts]) for parts in variants for kind in KINDS[1:])
    for ours, names in BLOCK.items():
        yield from ((ours + kind, [name + kind]) for name in names for kind in KINDS)


def to_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the keys of files that transformers reads."""
    exported: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key in TOP:
            exported[TOP[key]] = tensor
            continue
        _, block, name = key.split(".", 2)
        at = f"encoder.layer.{block}."
        module, _, kind = name.rpartition(".")
        if module == "attn.qkv":
            parts = FUSED[module][0]
            exported |= {f"{at}{part}.{kind}": rows for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True)}
        elif name in BLOCK:
            exported[at + BLOCK[name][0]] = tensor
        elif module in BLOCK:
            exported[f"{at}{BLOCK[module][0]}.{kind}"] = tensor
        else:
            exported[at + name] = tensor
    return exported
