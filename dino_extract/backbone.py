"""The DINOv2 vision transformer as the paper and the official weights have it: for training, and as the reference for inference.

Parameter names are those of the official checkpoints, so a released state dict loads strictly.

Dimension key: B images or crops in the batch, H W pixels, h w patch grid, N = h * w patches, R register tokens, S = 1 + R + N
tokens of one image, D embedding width, A attention heads, T tokens of all crops in the batch laid end to end.

Source: DINOv2 (arXiv 2304.07193) Sec. 4-5; Vision Transformers Need Registers (arXiv 2309.16588); official
dinov2/models/vision_transformer.py and dinov2/layers/.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dino_extract.config import IMAGENET_MEAN, IMAGENET_STD

# Batch size and tokens per image of each crop size in a packed batch.
CropShapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class BackboneConfig:
    """The shape of a DINOv2 backbone.

    Args:
        image_size: side in pixels of the grid that `pos_embed` was made for; other sizes interpolate it.
        interpolate_offset: added to the target grid before the scale is computed; 0.1 in the plain released models, which
            slightly stretches the grid, 0 in those with registers.
        interpolate_antialias: whether that interpolation is antialiased; only in the released models with registers.
        layer_scale_init: start value of LayerScale in training; loading a checkpoint replaces it.
        drop_path: probability that a residual branch skips an image in training; skipped images cost no compute.
    """

    embed_dim: int
    depth: int
    num_heads: int
    ffn: Literal["mlp", "swiglu"] = "mlp"
    num_registers: int = 0
    patch_size: int = 14
    image_size: int = 518
    interpolate_offset: float = 0.1
    interpolate_antialias: bool = False
    layer_scale_init: float = 1e-5
    drop_path: float = 0.0

    def with_registers(self, count: int = 4) -> BackboneConfig:
        """The same network with register tokens, and the position interpolation that those released models use."""
        return replace(self, num_registers=count, interpolate_offset=0.0, interpolate_antialias=True)


@dataclass(frozen=True)
class Tokens:
    """What a backbone gives back for a batch of images, after the final norm.

    Args:
        cls: (B, D) one token for the whole image.
        registers: (B, R, D) register tokens; R is 0 where the model has none.
        patches: (B, N, D) one token per patch, row by row from the top left.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor

    @classmethod
    def split(cls, x_BSD: Tensor, num_registers: int) -> Tokens:
        """Tokens in the order that the network computes them, (B, S, D): CLS, registers, patches."""
        return cls(x_BSD[:, 0], x_BSD[:, 1 : 1 + num_registers], x_BSD[:, 1 + num_registers :])


class Backbone(nn.Module, ABC):
    """What the rest of the project needs to know of any ViT, ours or another library's.

    Attributes:
        embed_dim: width D of a token.
        depth: number of blocks.
        patch_size: side of a patch in pixels; image sides are multiples of it.
        num_registers: register tokens R.
        mean: of the RGB channels the model was trained with, for pixels in 0..1.
        std: likewise the standard deviation.
    """

    embed_dim: int
    depth: int
    patch_size: int
    num_registers: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @abstractmethod
    def forward(self, images: Tensor) -> Tokens:
        """Final tokens of images (B, 3, H, W) float, RGB, normalised with `mean` and `std`."""

    @abstractmethod
    def intermediate_layers(self, images: Tensor, layers: Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Tokens after the given blocks (0 is the first), by default after the final norm, for images as in `forward`."""


class DinoVisionTransformer(Backbone):
    """A ViT that gives normed CLS, register and patch tokens for normalised RGB images of any size divisible by the patch size."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.embed_dim
        self.depth = config.depth
        self.patch_size = config.patch_size
        self.num_registers = config.num_registers
        self.checkpoint_blocks = False  # recompute activations in the backward pass to save memory
        native = config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + native * native, config.embed_dim))
        if config.num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, config.num_registers, config.embed_dim))
        self.mask_token = nn.Parameter(torch.empty(1, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        if not self.cls_token.is_meta:  # drawing numbers for tensors without memory would load torch's compiler, for more than a second
            self.init_weights()

    def init_weights(self) -> None:
        """Start values for training from scratch, drawn from torch's global generator."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.num_registers:
            nn.init.normal_(self.register_tokens, std=1e-6)
        nn.init.zeros_(self.mask_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @overload
    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tokens: ...

    @overload
    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Tokens]: ...

    def forward(self, images: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor | None] | None = None) -> Tokens | list[Tokens]:
        """Final tokens of one batch, or of several crop sizes whose linear layers then run as one.

        Args:
            images: (B, 3, H, W) float, RGB, normalised with `mean` and `std`; H and W divisible by the patch size.
                A sequence of such batches, one for each crop size, gives a list; B may differ.
            masks: (B, N) bool, True where the mask token replaces a patch; for a sequence, one or None for each.
        """
        if isinstance(images, Tensor):
            assert masks is None or isinstance(masks, Tensor), "one batch of images takes one mask tensor"
            return self._forward_packed([images], [masks])[0]
        assert not isinstance(masks, Tensor), "a sequence of batches takes a sequence of masks"
        return self._forward_packed(images, masks or [None] * len(images))

    def intermediate_layers(self, images: Tensor, layers: Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Tokens after the given blocks.

        Args:
            images: (B, 3, H, W) float, RGB, normalised.
            layers: block indices, 0 for the first.
            norm: whether the final norm is applied to every layer, as the official `get_intermediate_layers` does.
        """
        x_BSD = self.embed(images)
        shapes = [x_BSD.shape[:2]]
        x_TD = x_BSD.flatten(0, 1)
        kept = {}
        for index, block in enumerate(self.blocks[: max(layers) + 1]):
            x_TD = block(x_TD, shapes)
            if index in layers:
                kept[index] = (self.norm(x_TD) if norm else x_TD).view_as(x_BSD)
        return [Tokens.split(kept[layer], self.num_registers) for layer in layers]

    def embed(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Tokens before the first block, (B, S, D): CLS, registers, patches, positions added.

        Args:
            images: (B, 3, H, W) float, RGB, normalised.
            masks: (B, N) bool, True where the mask token replaces a patch.
        """
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        x_BND = self.patch_embed(images)
        if masks is not None:
            x_BND = torch.where(masks.unsqueeze(-1), self.mask_token.to(x_BND.dtype).unsqueeze(0), x_BND)
        positions = self.interpolated_positions(grid).to(x_BND.dtype)
        batch = x_BND.shape[0]  # `len` would make it a constant for torch.export
        cls_B1D = (self.cls_token + positions[:, :1]).expand(batch, -1, -1)
        parts = [cls_B1D, x_BND + positions[:, 1:]]
        if self.num_registers:  # registers have no position
            parts.insert(1, self.register_tokens.expand(batch, -1, -1))
        return torch.cat(parts, dim=1)

    def interpolated_positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings (1, 1 + h * w, D) for a patch grid (h, w), interpolated as the released models were evaluated."""
        native = math.isqrt(self.pos_embed.shape[1] - 1)
        if grid == (native, native):
            return self.pos_embed
        positions = self.pos_embed.float()
        patches_1Dhw = positions[:, 1:].unflatten(1, (native, native)).permute(0, 3, 1, 2)
        offset, antialias = self.config.interpolate_offset, self.config.interpolate_antialias
        if offset:
            # The scale, not the size, fixes the sampling points here: (h + 0.1) / native, not h / native.
            scale = ((grid[0] + offset) / native, (grid[1] + offset) / native)
            resized = F.interpolate(patches_1Dhw, scale_factor=scale, mode="bicubic", antialias=antialias)
        else:
            resized = F.interpolate(patches_1Dhw, size=grid, mode="bicubic", antialias=antialias)
        assert resized.shape[-2:] == grid, f"interpolation gave {tuple(resized.shape[-2:])} for grid {grid}"
        return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def _forward_packed(self, images: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[Tokens]:
        embedded = [self.embed(batch, mask) for batch, mask in zip(images, masks, strict=True)]
        shapes = [(x.shape[0], x.shape[1]) for x in embedded]
        x_TD = torch.cat([x.flatten(0, 1) for x in embedded])
        for block in self.blocks:
            if self.checkpoint_blocks and self.training:
                x_TD = checkpoint(block, x_TD, shapes, use_reentrant=False)
            else:
                x_TD = block(x_TD, shapes)
        return [Tokens.split(x_BSD, self.num_registers) for x_BSD in unpack(self.norm(x_TD), shapes)]


class PatchEmbed(nn.Module):
    """One token per non-overlapping square patch: (B, 3, H, W) to (B, N, D), rows from the top."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens (B, N, D) of images (B, 3, H, W); H and W must be multiples of the patch size."""
        patch = self.proj.kernel_size[0]
        height, width = images.shape[-2:]
        assert height % patch == 0 and width % patch == 0, f"expected sides divisible by {patch}, got {height}x{width}"
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale, over tokens of one or more crop sizes laid end to end."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.drop_path = config.drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads)
        self.ls1 = LayerScale(dim, config.layer_scale_init)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp: nn.Module = SwiGLU(dim) if config.ffn == "swiglu" else Mlp(dim)
        self.ls2 = LayerScale(dim, config.layer_scale_init)

    def forward(self, x_TD: Tensor, shapes: CropShapes) -> Tensor:
        """Tokens (T, D) after attention within each image and the feed-forward network.

        Args:
            x_TD: (T, D) float, tokens of all images of all crop sizes, end to end.
            shapes: images and tokens per image (B, S) of each crop size; sum of B * S is T.
        """
        x_TD = self._add_residual(x_TD, shapes, self._attention_branch)
        return self._add_residual(x_TD, shapes, self._ffn_branch)

    def _attention_branch(self, x_TD: Tensor, shapes: CropShapes) -> Tensor:
        return self.ls1(self.attn(self.norm1(x_TD), shapes))

    def _ffn_branch(self, x_TD: Tensor, shapes: CropShapes) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x_TD)))

    def _add_residual(self, x_TD: Tensor, shapes: CropShapes, branch: Callable[[Tensor, CropShapes], Tensor]) -> Tensor:
        """Sum of x and branch(x), in training with `drop_path` over a random subset of the images of each crop size.

        Source: DINOv2 Sec. 5, "Efficient stochastic depth": skipped images are not computed at all, and the branch of the
        others is scaled by B / kept so that its expectation stays the same.
        """
        if not (self.training and self.drop_path > 0):
            return x_TD + branch(x_TD, shapes)
        kept_tokens, kept_shapes, scales, start = [], [], [], 0
        for batch, length in shapes:
            kept = max(1, int(batch * (1 - self.drop_path)))
            images = torch.randperm(batch, device=x_TD.device)[:kept]
            tokens = start + images[:, None] * length + torch.arange(length, device=x_TD.device)
            kept_tokens.append(tokens.flatten())
            kept_shapes.append((kept, length))
            scales.append(x_TD.new_full((kept * length, 1), batch / kept))
            start += batch * length
        index_T = torch.cat(kept_tokens)
        residual = branch(x_TD[index_T], kept_shapes) * torch.cat(scales)
        return x_TD.index_add(0, index_T, residual.to(x_TD.dtype))


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of each image."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_TD: Tensor, shapes: CropShapes) -> Tensor:
        """Attended tokens (T, D); the projections run once over all crop sizes, the attention once for each."""
        attended = []
        for qkv_BSE in unpack(self.qkv(x_TD), shapes):
            query, key, value = self.split_heads(qkv_BSE)
            attended.append(attend(query, key, value).transpose(1, 2).flatten(2).flatten(0, 1))
        return self.proj(torch.cat(attended))

    def split_heads(self, qkv_BSE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, A, S, D / A) of fused projections (B, S, 3 * D)."""
        query, key, value = qkv_BSE.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d)) value, each (B, A, S, d), by whichever form is fast.

    The backward pass of PyTorch's fused CPU attention is several times slower in bfloat16 than plain products: 17 ms against 2.4 ms
    for 128 crops of 21 tokens, 104 ms against 46 ms for 64 of 261 (PyTorch 2.15).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return scores.softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


class LayerScale(nn.Module):
    """Learned scale of each channel of a residual branch."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Scaled tokens (T, D)."""
        return x_TD * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between, hidden width 4 D: the feed-forward network of S, B and L."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Tokens (T, D)."""
        return self.fc2(F.gelu(self.fc1(x_TD)))


class SwiGLU(nn.Module):
    """Gated feed-forward network of the g model: w3(silu(first half) * second half) of w12(x).

    Source: Shazeer 2020 (arXiv 2002.05202); official dinov2/layers/swiglu_ffn.py, whose hidden width is 2/3 of the MLP's,
    rounded up to a multiple of 8.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8  # 4096 for D = 1536
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Tokens (T, D)."""
        gate, value = self.w12(x_TD).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def unpack(x_TD: Tensor, shapes: CropShapes) -> list[Tensor]:
    """Tokens laid end to end, (T, D), as one (B, S, D) view for each crop size."""
    parts = x_TD.split([batch * length for batch, length in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]
