"""Every key layout in which DINOv2 checkpoints are passed around, to the official one and back.

Known layouts: official, official with blocks in chunks (`blocks.CHUNK.INDEX.`), transformers (`hf`), and timm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from dino_extract.backbone import BackboneConfig
from dino_extract.errors import WeightsError
from dino_extract.weights.layouts import hf, timm
from dino_extract.weights.layouts.official import check_tensors, expected_shapes, infer_config, named, number_blocks, renamed

__all__ = [
    "EXPORT_LAYOUTS",
    "Converted",
    "ExportLayout",
    "KeyLayout",
    "check_tensors",
    "expected_shapes",
    "from_official",
    "infer_config",
    "named",
    "to_official",
]

KeyLayout = Literal["official", "chunked", "hf", "timm", "dino-extract"]
ExportLayout = Literal["official", "hf", "timm", "dino-extract"]
EXPORT_LAYOUTS: tuple[ExportLayout, ...] = get_args(ExportLayout)

# Wrappers of DDP, torch.compile, activation checkpointing and FSDP leave these inside the keys.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# Parts of a training run or of a classifier that no embedding needs.
IGNORED = re.compile(r"(?:^|\.)(dino_head|ibot_head|dino_loss|ibot_patch_loss|classifier|head|linear_head|student)\.")

PATCH_EMBEDDINGS = (hf.PATCH_EMBEDDING, "patch_embed.proj.weight")

EXPORTS: dict[ExportLayout, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "official": dict,
    "dino-extract": dict,
    "hf": hf.to_hf,
    "timm": timm.to_timm,
}


@dataclass(frozen=True)
class Converted:
    """A checkpoint in official keys.

    Args:
        tensors: in official keys, types as stored.
        config: the architecture that the tensors show.
        layout: where they came from.
        notes: what was left out or filled in, for the user.
    """

    tensors: dict[str, Tensor]
    config: BackboneConfig
    layout: KeyLayout
    notes: tuple[str, ...] = field(default=())


def to_official(tensors: Mapping[str, Tensor], *, origin: str, num_heads: int | None = None) -> Converted:
    """A checkpoint of any known layout in official keys, complete and with the right shapes.

    Args:
        tensors: as in the file.
        origin: names the file in errors.
        num_heads: attention heads, where something beside the tensors tells them; otherwise D / 64.

    Raises:
        WeightsError: the layout is unknown, or keys are left over, missing or misshapen; the message names them.
    """
    found, notes = _backbone_tensors(tensors, origin)
    layout, official = _renamed_as_official(found, origin)
    if "mask_token" not in official and "cls_token" in official:
        official["mask_token"] = torch.zeros_like(official["cls_token"]).flatten(0, 1)
        notes.append("`mask_token` is not in the file and was set to zeros, which embedding never uses")
    config = infer_config(official, origin=origin, num_heads=num_heads)
    check_tensors(official, config, origin)
    return Converted(official, config, layout, tuple(notes))


def from_official(tensors: Mapping[str, Tensor], layout: ExportLayout) -> dict[str, Tensor]:
    """Tensors of a backbone in the keys that another library reads; `dino-extract` keeps the official ones.

    With `timm` the class position of a model with registers is added to the class token, and there is no mask token.
    """
    return EXPORTS[layout](tensors)


def _renamed_as_official(found: Mapping[str, Tensor], origin: str) -> tuple[KeyLayout, dict[str, Tensor]]:
    if hf.PATCH_EMBEDDING in found:
        return "hf", hf.from_hf(found)
    if timm.is_timm_layout(found):
        return "timm", timm.from_timm(found)
    official = number_blocks(found, origin)
    return ("official" if official.keys() == found.keys() else "chunked"), official


def _backbone_tensors(tensors: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the backbone alone, without the prefix of the model that it was part of, and notes about the others."""
    clean = renamed(tensors, lambda key: WRAPPERS.sub("", key), origin)
    prefix = _backbone_prefix(clean, origin)
    parts = {key: found[1] for key in clean if (found := IGNORED.search(key.removeprefix(prefix)))}
    unknown = [key for key in clean if not key.startswith(prefix) and key not in parts]
    if unknown:
        raise WeightsError(f"{origin} has keys that belong to no known part of a DINOv2 checkpoint: {named(unknown)}")
    listed = ", ".join(f"`{part}`" for part in sorted(set(parts.values())))
    notes = [f"{len(parts)} tensors of {listed} in the file were left out"] if parts else []
    return {key.removeprefix(prefix): tensor for key, tensor in clean.items() if key not in parts}, notes


def _backbone_prefix(keys: Mapping[str, Tensor], origin: str) -> str:
    """The prefix of the backbone's keys, such as `teacher.backbone.`; a teacher is preferred."""
    prefixes = {key.removesuffix(mark) for mark in PATCH_EMBEDDINGS for key in keys if key == mark or key.endswith("." + mark)}
    if not prefixes:
        hint = "it looks like a linear head, which is not a backbone" if set(keys) == {"weight", "bias"} else None
        raise WeightsError(
            f"{origin} is not a DINOv2 checkpoint: no patch embedding among its {len(keys)} tensors ({named(keys)})", hint=hint
        )
    return min(prefixes, key=lambda prefix: (not prefix.startswith("teacher."), prefix))
