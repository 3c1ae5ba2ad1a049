"""Where the CLS token of a block looks: one map over the patches for each attention head.

Dimension key as in backbone.py: B images, A heads, S = 1 + R + N tokens, h w patch grid, D width.

Fast attention kernels never form the attention matrix, so the softmax of the chosen block is computed here from its own projections.
Source: DINO (arXiv 2104.14294) Fig. 1, attention of the CLS token in the last layer; register tokens are left out of the maps
(arXiv 2309.16588).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dino_extract.analysis.writing import writing
from dino_extract.backbone import Backbone, Block, DinoVisionTransformer
from dino_extract.errors import ConfigError
from dino_extract.names import file_stem
from dino_extract.pictures.sight import SeenImage
from dino_extract.pictures.stored import contact_sheet

# Dark violet over red and orange to pale yellow, evenly spaced in strength; RGB.
_HEAT = np.array([[0, 0, 4], [58, 15, 110], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]], np.float64)
_SATURATED = 0.995  # share of patches below full brightness: a single peak must not leave the rest dark


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """What the CLS token attends to in one image.

    Args:
        image: what the model saw.
        heads: (A, h, w) float32, the share of each patch in the attention of a head.
        elsewhere: (A,) float32, the share that goes to the CLS token itself and to registers: maps and this sum to 1.
        layer: the block.
    """

    image: SeenImage
    heads: NDArray[np.float32]
    elsewhere: NDArray[np.float32]
    layer: int

    @property
    def mean(self) -> NDArray[np.float32]:
        """(h, w) float32 mean over the heads."""
        mean: NDArray[np.float32] = self.heads.mean(axis=0)
        return mean

    def picture(self) -> Image.Image:
        """What the model saw, the mean over heads, and every head, on one sheet."""
        size = self.image.picture.size
        maps = [self.image.picture, *(heat(each).resize(size, Image.Resampling.BICUBIC) for each in (self.mean, *self.heads))]
        captions = ["image", "mean of the heads", *(f"head {number + 1}" for number in range(len(self.heads)))]
        return contact_sheet(maps, captions)

    def save(self, folder: str | os.PathLike[str], number: int = 0) -> str:
        """Write the picture as PNG, named by number and image; gives back its path.

        Raises:
            ConfigError: it cannot be written.
        """
        with writing(folder, "folder"):
            os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{number}_{file_stem(os.path.basename(self.image.path))}.png")
        with writing(path, "picture"):
            self.picture().save(path)
        return path


def attention_maps(backbone: Backbone, image: SeenImage, *, layer: int | None = None) -> AttentionMaps:
    """The attention of the CLS token of one image in one block.

    Args:
        backbone: a DINOv2 model, in eval mode.
        image: from `see`.
        layer: 0 for the first block; by default the last.

    Raises:
        ConfigError: another kind of model, or it has no such block.
    """
    if not isinstance(backbone, DinoVisionTransformer):
        raise ConfigError("attention maps need a DINOv2 model, not one of another library", hint="for example `--model vits14`")
    layer = backbone.depth - 1 if layer is None else layer
    if not 0 <= layer < backbone.depth:
        raise ConfigError(f"`--layer {layer}` is outside this model's blocks 0..{backbone.depth - 1}", hint="leave it out for the last")
    pixels = image.pixels(backbone)
    with torch.inference_mode():
        attention_AS = cls_attention(backbone, pixels, layer)[0]
    first_patch = 1 + backbone.num_registers
    grid = (pixels.shape[-2] // backbone.patch_size, pixels.shape[-1] // backbone.patch_size)
    heads = attention_AS[:, first_patch:].unflatten(1, grid)
    return AttentionMaps(image, heads.numpy(), attention_AS[:, :first_patch].sum(dim=1).numpy(), layer)


def cls_attention(backbone: DinoVisionTransformer, images: Tensor, layer: int) -> Tensor:
    """(B, A, S) how the CLS token of each head divides its attention among all tokens; sums to 1.

    softmax(q_cls k^T / sqrt(D / A)), with q and k of the normed tokens that enter the block.

    Args:
        backbone: the model.
        images: (B, 3, H, W) float32, normalised.
        layer: the block.
    """
    x_BSD = backbone.embed(images)
    shapes = [(x_BSD.shape[0], x_BSD.shape[1])]
    x_TD = x_BSD.flatten(0, 1)
    for block in backbone.blocks[:layer]:
        x_TD = block(x_TD, shapes)
    block = backbone.blocks[layer]
    assert isinstance(block, Block), "a DINOv2 backbone is made of blocks"
    query, key, _ = block.attn.split_heads(block.attn.qkv(block.norm1(x_TD)).view(*shapes[0], -1))
    scores_BAS = (query[:, :, :1] @ key.transpose(-2, -1)).squeeze(2) / query.shape[-1] ** 0.5
    attention_BAS: Tensor = scores_BAS.softmax(dim=-1)
    return attention_BAS


def heat(values_hw: NDArray[np.float32]) -> Image.Image:
    """A map as colours from dark (nothing) to pale yellow (most), one pixel for each value."""
    top = float(np.quantile(values_hw, _SATURATED))
    strength = np.clip(values_hw / max(top, 1e-12), 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(strength.astype(int), len(_HEAT) - 2)
    part = (strength - low)[..., None]
    colours = _HEAT[low] * (1 - part) + _HEAT[low + 1] * part
    return Image.fromarray(np.round(colours).astype(np.uint8))
