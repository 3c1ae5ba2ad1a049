"""The official key layout: the architecture that tensors show, and whether they are complete."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.errors import WeightsError

HEAD_WIDTH = 64  # in every released model; the tensors do not show the number of heads


def infer_config(official: Mapping[str, Tensor], *, origin: str, num_heads: int | None = None) -> BackboneConfig:
    """The architecture that tensors in official keys show.

    Position interpolation is that of the released models: antialiased where there are registers.

    Raises:
        WeightsError: a tensor that shows it is missing or has an impossible shape.
    """
    for key, dims in [("cls_token", 3), ("pos_embed", 3), ("patch_embed.proj.weight", 4)]:
        if key not in official or official[key].ndim != dims:
            raise WeightsError(f"{origin} has no `{key}` with {dims} dimensions")
    dim, _, patch_size, _ = official["patch_embed.proj.weight"].shape
    if dim == 0 or patch_size == 0:
        raise WeightsError(f"{origin} has a patch embedding of shape {tuple(official['patch_embed.proj.weight'].shape)}")
    blocks = {int(match[1]) for key in official if (match := re.match(r"blocks\.(\d+)\.", key))}
    registers = official.get("register_tokens")
    config = BackboneConfig(
        embed_dim=dim,
        depth=len(blocks),
        num_heads=_num_heads(dim, num_heads, origin),
        ffn="swiglu" if any(".mlp.w12." in key for key in official) else "mlp",
        patch_size=patch_size,
        image_size=_grid_side(official["pos_embed"].shape[1], origin) * patch_size,
    )
    return config if registers is None or registers.ndim != 3 else config.with_registers(registers.shape[1])


def _num_heads(dim: int, num_heads: int | None, origin: str) -> int:
    if num_heads is None and dim % HEAD_WIDTH:
        raise WeightsError(f"{origin} has width {dim}, which is not a multiple of {HEAD_WIDTH}: the number of attention heads is not known")
    if num_heads is not None and (num_heads < 1 or dim % num_heads):
        raise WeightsError(f"{origin} has width {dim}, which {num_heads} attention heads cannot share")
    return num_heads or dim // HEAD_WIDTH


def _grid_side(num_positions: int, origin: str) -> int:
    side = math.isqrt(max(num_positions - 1, 0))
    if side == 0 or side**2 + 1 != num_positions:
        raise WeightsError(f"{origin} has {num_positions} positions, expected one and those of a square patch grid")
    return side


def expected_shapes(config: BackboneConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a backbone by official key."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in DinoVisionTransformer(config).state_dict().items()}


def named(keys: Iterable[str]) -> str:
    """The first five of some keys and how many there are, for error messages."""
    listed = sorted(keys)
    return ", ".join(f"`{key}`" for key in listed[:5]) + (f", ... ({len(listed)} in all)" if len(listed) > 5 else "")


def renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str], origin: str) -> dict[str, Tensor]:
    """Tensors under new keys, no two of which may become the same."""
    renamed = {rename(key): tensor for key, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise WeightsError(f"{origin} has {len(tensors)} keys of which only {len(renamed)} are different without wrappers and chunks")
    return renamed


def number_blocks(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Official keys without chunks: the numbers of blocks count through, so that `blocks.1.12.` becomes block 12."""
    return renamed(tensors, lambda key: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key), origin)


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
