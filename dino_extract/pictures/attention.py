"""Attention of the CLS token in one block: a map over the patches for each attention head.

Dimension key as in backbone.py: B images, A heads, S = 1 + R + N tokens, h w patch grid, D width.

Fast attention kernels never form the attention matrix, so the softmax of the chosen block is computed here from its own projections.
Source: DINO (arXiv 2104.14294) Fig. 1, attention of the CLS token in the last layer; register tokens are left out of the maps
(arXiv 2309.16588).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dino_extract.backbone import Backbone, Block, DinoVisionTransformer
from dino_extract.errors import ConfigError, SourceError
from dino_extract.files import check_target, writing
from dino_extract.options import as_list
from dino_extract.pictures.layout import image_grid, numbered_png, write_picture
from dino_extract.pictures.model_input import SIDE_PX, InputImage, input_image, require_files
from dino_extract.weights.loading import load

# Dark violet over red and orange to pale yellow, evenly spaced in strength; RGB.
_HEAT = np.array([[0, 0, 4], [58, 15, 110], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]], np.float64)
_SATURATED = 0.995  # share of patches below full brightness: a single peak must not leave the rest dark


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of the CLS token in one image.

    Args:
        image: the input of the model.
        heads: (A, h, w) float32, the share of each patch in the attention of a head.
        elsewhere: (A,) float32, the share that goes to the CLS token itself and to registers. With the maps it sums to 1.
        layer: the block.
        path: the picture that was written; empty if none was.
    """

    image: InputImage
    heads: NDArray[np.float32]
    elsewhere: NDArray[np.float32]
    layer: int
    path: str = ""

    @property
    def mean(self) -> NDArray[np.float32]:
        """(h, w) float32 mean over the heads."""
        mean: NDArray[np.float32] = self.heads.mean(axis=0)
        return mean

    def picture(self) -> Image.Image:
        """The input of the model, the mean over the heads, and every head, on one sheet."""
        size = self.image.picture.size
        maps = [self.image.picture, *(heat(each).resize(size, Image.Resampling.BICUBIC) for each in (self.mean, *self.heads))]
        captions = ["image", "mean of the heads", *(f"head {number + 1}" for number in range(len(self.heads)))]
        return image_grid(maps, captions)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the picture.

        Raises:
            ConfigError: it exists or cannot be written.
        """
        write_picture(self.picture(), path, "picture", overwrite=overwrite)


def attention(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    weights: str | None = None,
    random_weights: int | None = None,
    offline: bool = False,
    size: int | str = SIDE_PX,
    layer: int | None = None,
    overwrite: bool = False,
    on_failure: Callable[[str, str], None] | None = None,
) -> list[AttentionMaps]:
    """The attention of the CLS token in image files.

    Args:
        images: image files, one or several.
        output: a folder for one PNG of each image; None writes nothing.
        model: as for `embed`; a DINOv2 model.
        weights: as for `embed`.
        random_weights: as for `embed`.
        offline: download nothing.
        size: input of the model: pixels of the shorter side, or `HEIGHTxWIDTH`.
        layer: the block, 0 for the first; by default the last.
        overwrite: replace existing pictures.
        on_failure: called with the path and the reason for each image that cannot be read, if there are several.

    Raises:
        SourceError: the only image cannot be read.
        ConfigError: another kind of model, no such block, a size that the patch size does not divide, or a picture exists.
    """
    names = [os.fspath(image) for image in as_list(images)]
    if len(names) == 1:
        require_files(*names)
    pictures = _picture_paths(names, output, overwrite)
    backbone = load(model, weights=weights, random_weights=random_weights, offline=offline).module
    found = []
    for name, picture in itertools.zip_longest(names, pictures):
        try:
            maps = attention_maps(backbone, input_image(name, backbone, size=size), layer=layer)
        except SourceError as error:
            if len(names) == 1:
                raise
            if on_failure is not None:
                on_failure(name, error.message)
            continue
        found.append(maps if picture is None else _saved(maps, picture, overwrite))
    return found


def _picture_paths(names: Sequence[str], output: str | os.PathLike[str] | None, overwrite: bool) -> list[str]:
    """The path of the picture of each image, checked before the work. Without a folder there are none."""
    if output is None:
        return []
    paths = [os.path.join(output, numbered_png(number, len(names), os.path.basename(name))) for number, name in enumerate(names)]
    for path in filter(os.path.exists, paths):
        check_target(path, "picture", overwrite=overwrite)
    return paths


def _saved(maps: AttentionMaps, path: str, overwrite: bool) -> AttentionMaps:
    with writing(os.path.dirname(path), "folder"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    maps.save(path, overwrite=overwrite)
    return replace(maps, path=path)


def attention_maps(backbone: Backbone, image: InputImage, *, layer: int | None = None) -> AttentionMaps:
    """The attention of the CLS token of one image in one block.

    Args:
        backbone: a DINOv2 model, in eval mode.
        image: from `input_image`.
        layer: 0 for the first block; by default the last.

    Raises:
        ConfigError: another kind of model, or it has no such block.
    """
    if not isinstance(backbone, DinoVisionTransformer):
        raise ConfigError("attention maps need a DINOv2 model, not one of another library", hint="for example `--model vits14`")
    layer = backbone.depth - 1 if layer is None else layer
    if not 0 <= layer < backbone.depth:
        raise ConfigError(f"`layer` must be from 0 to {backbone.depth - 1} for this model, got {layer}", hint="leave it out for the last")
    pixels = image.pixels(backbone)
    with torch.inference_mode():
        attention_AS = cls_attention(backbone, pixels, layer)[0]
    first_patch = 1 + backbone.num_registers
    grid = (pixels.shape[-2] // backbone.patch_size, pixels.shape[-1] // backbone.patch_size)
    heads = attention_AS[:, first_patch:].unflatten(1, grid)
    return AttentionMaps(image, heads.numpy(), attention_AS[:, :first_patch].sum(dim=1).numpy(), layer)


def cls_attention(backbone: DinoVisionTransformer, images: Tensor, layer: int) -> Tensor:
    """(B, A, S) the share of each token in the attention of the CLS token, for each head; sums to 1.

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
