"""Every key layout in which DINOv2 checkpoints are passed around, to the official one and back.

Known layouts: official, official with blocks in chunks (`blocks.CHUNK.INDEX.`), Hugging Face (Dinov2 and Dinov2WithRegisters, the names
of files and those that transformers 5 uses in memory), timm (plain, and with registers, where the class token has its position added).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.errors import WeightsError

KeyLayout = Literal["official", "chunked", "hf", "timm", "dino-extract"]
ExportLayout = Literal["official", "hf", "timm", "dino-extract"]
EXPORT_LAYOUTS: tuple[ExportLayout, ...] = get_args(ExportLayout)

HEAD_WIDTH = 64  # in every released model; the number of heads leaves no trace in the tensors

# Wrappers of DDP, torch.compile, activation checkpointing and FSDP leave these inside the keys.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# Parts of a training run or of a classifier that no embedding needs.
IGNORED = re.compile(r"(?:^|\.)(dino_head|ibot_head|dino_loss|ibot_patch_loss|classifier|head|linear_head|student)\.")

HF_MARK = "embeddings.patch_embeddings.projection.weight"
PATCH_MARKS = (HF_MARK, "patch_embed.proj.weight")

# Hugging Face names of files, then those in the memory of transformers 5, by official name.
HF_TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
HF_BLOCK = {
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "ls1.gamma": ("layer_scale1.lambda1",),
    "ls2.gamma": ("layer_scale2.lambda1",),
    "mlp.w12": ("mlp.weights_in",),
    "mlp.w3": ("mlp.weights_out", "mlp.down_proj"),
}
# Official tensors that are several in this layout, in the order of their rows.
HF_FUSED = {
    "attn.qkv": (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    "mlp.w12": (("mlp.gate_proj", "mlp.up_proj"),),
}
TIMM_SWIGLU = {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}


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
    layout: KeyLayout
    found, notes = _strip(tensors, origin)
    if HF_MARK in found:
        layout, official = "hf", _from_hf(found)
    elif "reg_token" in found or _has_packed_swiglu(found) or "mask_token" not in found:
        layout, official = "timm", _from_timm(found)
    else:
        layout, official = _from_official(found, origin)
    if "mask_token" not in official and "cls_token" in official:
        official["mask_token"] = torch.zeros_like(official["cls_token"]).flatten(0, 1)
        notes.append("`mask_token` is not in the file and was set to zeros, which embedding never uses")
    config = infer_config(official, origin=origin, num_heads=num_heads)
    check_tensors(official, config, origin)
    return Converted(official, config, layout, tuple(notes))


def from_official(tensors: Mapping[str, Tensor], config: BackboneConfig, layout: ExportLayout) -> dict[str, Tensor]:
    """Tensors of a backbone in the keys that another library reads; `dino-extract` keeps the official ones.

    With `timm` a model with registers has its class position folded into the class token, and there is no mask token.
    """
    if layout == "hf":
        return _to_hf(tensors, config)
    if layout == "timm":
        return _to_timm(tensors, config)
    return dict(tensors)


def infer_config(official: Mapping[str, Tensor], *, origin: str, num_heads: int | None = None) -> BackboneConfig:
    """The architecture that tensors in official keys show.

    Position interpolation is that of the released models: antialiased where there are registers.

    Raises:
        WeightsError: a tensor needed to tell is missing or has an impossible shape.
    """
    for key, dims in [("cls_token", 3), ("pos_embed", 3), ("patch_embed.proj.weight", 4)]:
        if key not in official or official[key].ndim != dims:
            raise WeightsError(f"{origin} has no `{key}` with {dims} dimensions")
    dim, _, patch_size, _ = official["patch_embed.proj.weight"].shape
    native = math.isqrt(max(official["pos_embed"].shape[1] - 1, 0))
    if native == 0 or native**2 + 1 != official["pos_embed"].shape[1]:
        raise WeightsError(f"{origin} has {official['pos_embed'].shape[1]} positions, expected one and those of a square patch grid")
    if dim == 0 or patch_size == 0:
        raise WeightsError(f"{origin} has a patch embedding of shape {tuple(official['patch_embed.proj.weight'].shape)}")
    if num_heads is None and dim % HEAD_WIDTH:
        raise WeightsError(f"{origin} has width {dim}, which is no multiple of {HEAD_WIDTH}: the number of attention heads is not known")
    if num_heads is not None and (num_heads < 1 or dim % num_heads):
        raise WeightsError(f"{origin} has width {dim}, which {num_heads} attention heads cannot share")
    blocks = {int(match[1]) for key in official if (match := re.match(r"blocks\.(\d+)\.", key))}
    registers = official.get("register_tokens")
    config = BackboneConfig(
        embed_dim=dim,
        depth=len(blocks),
        num_heads=num_heads or dim // HEAD_WIDTH,
        ffn="swiglu" if any(".mlp.w12." in key for key in official) else "mlp",
        patch_size=patch_size,
        image_size=native * patch_size,
    )
    return config if registers is None or registers.ndim != 3 else config.with_registers(registers.shape[1])


def expected_shapes(config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a backbone by official key."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in DinoVisionTransformer(config).state_dict().items()}


def named(keys: Iterable[str]) -> str:
    """The first five of some keys and how many there are, for error messages."""
    listed = sorted(keys)
    return ", ".join(f"`{key}`" for key in listed[:5]) + (f", ... ({len(listed)} in all)" if len(listed) > 5 else "")


def _strip(tensors: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the backbone alone, without the prefix of whatever it was part of."""
    clean = _renamed(tensors, lambda key: WRAPPERS.sub("", key), origin)
    prefixes = {key.removesuffix(mark) for mark in PATCH_MARKS for key in clean if key == mark or key.endswith("." + mark)}
    if not prefixes:
        hint = "it looks like a linear head, which is not a backbone" if set(clean) == {"weight", "bias"} else None
        raise WeightsError(
            f"{origin} is not a DINOv2 checkpoint: no patch embedding among its {len(clean)} tensors ({named(clean)})", hint=hint
        )
    prefix = next((prefix for prefix in sorted(prefixes) if prefix.startswith("teacher.")), min(prefixes))
    inside = {key.removeprefix(prefix): tensor for key, tensor in clean.items() if key.startswith(prefix)}
    outside = [key for key in clean if not key.startswith(prefix)]
    ignored = [key for key in (*inside, *outside) if IGNORED.search(key)]
    unknown = [key for key in outside if not IGNORED.search(key)]
    if unknown:
        raise WeightsError(f"{origin} has keys that belong to no known part of a DINOv2 checkpoint: {named(unknown)}")
    parts = sorted({match[1] for key in ignored if (match := IGNORED.search(key))})
    notes = [f"{len(ignored)} tensors of {', '.join(f'`{part}`' for part in parts)} in the file were left out"] if ignored else []
    return {key: tensor for key, tensor in inside.items() if key not in set(ignored)}, notes


def _renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str], origin: str) -> dict[str, Tensor]:
    """Tensors under new keys, no two of which may become the same."""
    renamed = {rename(key): tensor for key, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise WeightsError(f"{origin} has {len(tensors)} keys of which only {len(renamed)} are different without wrappers and chunks")
    return renamed


def _from_official(found: Mapping[str, Tensor], origin: str) -> tuple[KeyLayout, dict[str, Tensor]]:
    """Official keys; blocks in chunks are numbered through: `blocks.1.12.` is block 12."""
    official = _renamed(found, lambda key: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key), origin)
    return ("official" if official.keys() == found.keys() else "chunked"), official


def _from_hf(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    left = dict(found)
    official = {ours: left.pop(theirs) for ours, theirs in HF_TOP.items() if theirs in left}
    for block in sorted({match[1] for key in found if (match := re.match(r"encoder\.layer\.(\d+)\.", key))}, key=int):
        theirs_at, ours_at = f"encoder.layer.{block}.", f"blocks.{block}."
        for ours, variants in HF_FUSED.items():
            for parts, kind in [(parts, kind) for parts in variants for kind in (".weight", ".bias")]:
                names = [theirs_at + part + kind for part in parts]
                if ours_at + ours + kind not in official and all(name in left for name in names):
                    official[ours_at + ours + kind] = torch.cat([left.pop(name) for name in names])
        for ours, variants_plain in HF_BLOCK.items():
            for theirs in variants_plain:
                for kind in ("", ".weight", ".bias"):
                    if ours_at + ours + kind not in official and theirs_at + theirs + kind in left:
                        official[ours_at + ours + kind] = left.pop(theirs_at + theirs + kind)
    # The rest of a block has the official names; what is left over after that is reported under its own name.
    return official | {re.sub(r"^encoder\.layer\.(\d+)\.", r"blocks.\1.", key): tensor for key, tensor in left.items()}


def _to_hf(tensors: Mapping[str, Tensor], config: BackboneConfig) -> dict[str, Tensor]:
    exported: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key in HF_TOP:
            exported[HF_TOP[key]] = tensor
            continue
        _, block, name = key.split(".", 2)
        at = f"encoder.layer.{block}."
        module, _, kind = name.rpartition(".")
        if module == "attn.qkv":
            parts = HF_FUSED[module][0]
            exported |= {f"{at}{part}.{kind}": rows for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True)}
        elif name in HF_BLOCK:
            exported[at + HF_BLOCK[name][0]] = tensor
        elif module in HF_BLOCK:
            exported[f"{at}{HF_BLOCK[module][0]}.{kind}"] = tensor
        else:
            exported[at + name] = tensor
    return exported


def _from_timm(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rename = _renamer({theirs: ours for ours, theirs in TIMM_SWIGLU.items()}) if _has_packed_swiglu(found) else str
    official = {rename(key): tensor for key, tensor in found.items()}
    if "reg_token" in official:
        official["register_tokens"] = official.pop("reg_token")
    positions = official.get("pos_embed")
    if positions is not None and positions.ndim == 3 and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        # The class token already has its position added: a position of zeros gives the same sum.
        official["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return official


def _to_timm(tensors: Mapping[str, Tensor], config: BackboneConfig) -> dict[str, Tensor]:
    rename = _renamer(TIMM_SWIGLU)
    exported = {rename(key): tensor for key, tensor in tensors.items() if key != "mask_token"}
    if config.num_registers:
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


def check_tensors(official: Mapping[str, Tensor], config: BackboneConfig, origin: str) -> None:
    """Every tensor of the architecture is there, has its shape, is made of finite floating-point numbers, and nothing is left over."""
    expected = expected_shapes(config)
    if missing := expected.keys() - official.keys():
        raise WeightsError(f"{origin} lacks {named(missing)}")
    if unknown := official.keys() - expected.keys():
        raise WeightsError(f"{origin} has keys that no DINOv2 backbone has: {named(unknown)}")
    misshapen = [
        f"{key} {tuple(official[key].shape)} instead of {shape}" for key, shape in expected.items() if tuple(official[key].shape) != shape
    ]
    if misshapen:
        raise WeightsError(f"{origin} has tensors of the wrong shape: {named(misshapen)}")
    if strange := [
        f"{key} {tensor.dtype}" for key, tensor in official.items() if tensor.layout is not torch.strided or not tensor.is_floating_point()
    ]:
        raise WeightsError(f"{origin} has tensors that are not floating-point numbers: {named(strange)}")
    if broken := [key for key, tensor in official.items() if not tensor.is_meta and not bool(tensor.isfinite().all())]:
        raise WeightsError(
            f"{origin} has values that are not finite in {named(broken)}", hint="the training run that wrote it had diverged"
        )
