"""The network of backbone.py as inference needs it: folded weights, no module machinery, uint8 pixels in.

Exact algebra moves work from every image to the construction: LayerScale goes into the weights before it, the affine part of a
norm into the weights after it, 1 / sqrt(d) into the queries, the scaling of pixels into the patch embedding. Where only CLS or
register tokens are wanted, the last block computes nothing else.

Dimension key as in backbone.py; K tokens kept of each image, d = D / A width of one head, P side of a patch in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dino_extract.backbone import Block, DinoVisionTransformer, SwiGLU


class Linear(Protocol):
    """A linear layer that carries out the elementwise step after it as well, in whatever form is fast on a device."""

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Rows x W^T + b."""

    def gelu(self, x_TD: Tensor) -> Tensor:
        """GELU(x W^T + b), with the exact GELU."""

    def silu(self, x_TD: Tensor) -> Tensor:
        """SiLU(x W^T + b)."""

    def multiply(self, x_TD: Tensor, factor_TD: Tensor) -> Tensor:
        """(x W^T + b) * factor."""


MAX_GRIDS = 64  # patch grids whose positions are kept; images in their native shapes may have thousands of grids

# Makes a layer of a float32 weight (out, in) and bias (out,), on its device and in its dtype.
MakeLinear = Callable[[Tensor, Tensor], Linear]

# Attention of queries (B, A, K, d), already scaled by 1 / sqrt(d), over keys and values (B, A, S, d): (B, K, D).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class PlainLinear:
    """The layer as torch has it, for any device."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x_TD: Tensor) -> Tensor:
        """As in `Linear`."""
        return F.linear(x_TD, self.weight, self.bias)

    def gelu(self, x_TD: Tensor) -> Tensor:
        """As in `Linear`."""
        return F.gelu(self(x_TD))

    def silu(self, x_TD: Tensor) -> Tensor:
        """As in `Linear`."""
        return F.silu(self(x_TD))

    def multiply(self, x_TD: Tensor, factor_TD: Tensor) -> Tensor:
        """As in `Linear`."""
        return self(x_TD) * factor_TD


def attend_fused(query_BAKd: Tensor, key_BASd: Tensor, value_BASd: Tensor) -> Tensor:
    """Attention in torch's fused kernel, (B, K, D)."""
    return F.scaled_dot_product_attention(query_BAKd, key_BASd, value_BASd, scale=1.0).transpose(1, 2).flatten(2)


class LeanTransformer:
    """A DINOv2 backbone that gives tokens after the final norm, in float32, for uint8 pixels.

    The residual stream and the norms are float32 in either precision: in bfloat16 the rounding of 40 blocks would add up, and
    on a CPU the sum is no slower than one fused into the product before it.

    Args:
        backbone: the model with float32 weights.
        device: where to run.
        dtype: of the weights, and of what the linear layers and the attention take and give.
        make_linear: the form of the linear layers.
        attend: the form of the attention.
        prefix_only: keep only CLS and register tokens.
        release: free the backbone's weights block by block as they are taken over; it cannot be used afterwards.
    """

    def __init__(
        self,
        backbone: DinoVisionTransformer,
        *,
        device: torch.device,
        dtype: torch.dtype,
        make_linear: MakeLinear,
        attend: Attend,
        prefix_only: bool = False,
        release: bool = False,
    ) -> None:
        self.patch_size = backbone.patch_size
        self.num_prefix = 1 + backbone.num_registers
        self.prefix_only = prefix_only
        self._device = device
        self._centre = pixel_centre(backbone).to(device, dtype)
        self._patch_embed = make_linear(*fold_pixels(backbone))
        self._stem = stem_of(backbone)
        self._positions: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._blocks: list[LeanBlock] = []
        for index, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            kept = self.num_prefix if prefix_only and index == backbone.depth - 1 else None
            self._blocks.append(LeanBlock(block, dtype, make_linear, attend, kept))
            if release:
                release_weights(block)
        self._norm_weight, self._norm_bias = (parameter.detach().to(device) for parameter in (backbone.norm.weight, backbone.norm.bias))

    def __call__(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Tokens (B, K, D) float32 after each of the given blocks (0 is the first) and the final norm.

        Args:
            pixels: (B, H, W, 3) uint8, RGB, on the device.
            layers: block indices.
        """
        x_BSD = self.embed(pixels)
        kept = {}
        for index, block in enumerate(self._blocks[: max(layers) + 1]):
            x_BSD = block(x_BSD)
            if index in layers:
                x_BKD = x_BSD[:, : self.num_prefix] if self.prefix_only else x_BSD
                kept[index] = F.layer_norm(x_BKD, x_BKD.shape[-1:], self._norm_weight, self._norm_bias, eps=1e-6)
        return [kept[layer] for layer in layers]

    def embed(self, pixels: Tensor) -> Tensor:
        """Tokens (B, S, D) float32 before the first block, for pixels as in `__call__`."""
        side = self.patch_size
        batch, height, width, channels = pixels.shape
        grid = (height // side, width // side)
        assert (height % side, width % side) == (0, 0), f"expected sides divisible by {side}, got {height}x{width}"
        rows_BhwPE = pixels.view(batch, grid[0], side, grid[1], side * channels).transpose(2, 3).contiguous()
        # Small integers: exact in bfloat16, so that nothing is lost before the first product.
        centred_TE = (rows_BhwPE - self._centre).view(-1, side * side * channels)
        prefix_RD, positions_ND = self.positions(grid)
        x_BND = self._patch_embed(centred_TE).view(batch, grid[0] * grid[1], -1) + positions_ND
        return torch.cat([prefix_RD.expand(batch, -1, -1), x_BND], dim=1)

    def positions(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """CLS with its position and registers (1 + R, D), and positions of patches (N, D), float32; made once for each grid."""
        found = self._positions.get(grid)
        if found is None:
            positions_1ND = self._stem.interpolated_positions(grid).detach()
            prefix = [self._stem.cls_token.detach() + positions_1ND[:, :1]]
            if self._stem.num_registers:
                prefix.append(self._stem.register_tokens.detach())
            parts = torch.cat(prefix, dim=1)[0], positions_1ND[0, 1:]
            found = parts[0].to(self._device), parts[1].to(self._device)
            if len(self._positions) < MAX_GRIDS:
                self._positions[grid] = found
        return found

    def forget_positions(self) -> None:
        """Let go of the positions that are kept, to make room for those of other grids."""
        self._positions.clear()


class LeanBlock:
    """One transformer block over tokens (B, S, D) float32, with LayerScale, norm weights and query scale folded.

    Args:
        block: of the backbone, with float32 weights.
        dtype: of the linear layers and the attention.
        make_linear: the form of the linear layers.
        attend: the form of the attention.
        kept: compute only the first `kept` tokens of every image; None computes all.
    """

    def __init__(self, block: Block, dtype: torch.dtype, make_linear: MakeLinear, attend: Attend, kept: int | None) -> None:
        self._dtype = dtype
        self._attend = attend
        self._kept = kept
        self._num_heads = block.attn.num_heads
        weight, bias = fold_norm(block.norm1, *fold_query_scale(block.attn.qkv, block.attn.num_heads))
        if kept is None:
            self._qkv = make_linear(weight, bias)
        else:
            dim = weight.shape[1]
            self._query, self._key_value = make_linear(weight[:dim], bias[:dim]), make_linear(weight[dim:], bias[dim:])
        self._proj = make_linear(*fold_layer_scale(block.attn.proj, block.ls1.gamma))
        self._ffn = lean_ffn(block, make_linear)

    def __call__(self, x_BSD: Tensor) -> Tensor:
        """Tokens (B, K, D) after the block; the given ones are overwritten."""
        attended_BKD = self._attended(normalise(x_BSD, self._dtype))
        x_BKD = x_BSD if self._kept is None else x_BSD[:, : self._kept].contiguous()
        x_TD = x_BKD.flatten(0, 1)
        x_TD += self._proj(attended_BKD.flatten(0, 1))
        x_TD += self._ffn(normalise(x_TD, self._dtype))
        return x_BKD

    def _attended(self, x_BSD: Tensor) -> Tensor:
        batch, length, dim = x_BSD.shape
        heads = (self._num_heads, dim // self._num_heads)
        if self._kept is None:
            qkv = self._qkv(x_BSD.flatten(0, 1)).view(batch, length, 3, *heads).permute(2, 0, 3, 1, 4)
            return self._attend(*qkv.unbind(0))
        query = self._query(x_BSD[:, : self._kept].flatten(0, 1)).view(batch, self._kept, *heads).transpose(1, 2)
        key_value = self._key_value(x_BSD.flatten(0, 1)).view(batch, length, 2, *heads).permute(2, 0, 3, 1, 4)
        return self._attend(query, *key_value.unbind(0))


class LeanMlp:
    """Two linear layers with a GELU between."""

    def __init__(self, fc1: Linear, fc2: Linear) -> None:
        self._fc1 = fc1
        self._fc2 = fc2

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Tokens (T, D)."""
        return self._fc2(self._fc1.gelu(x_TD))


class LeanSwiGLU:
    """The gated feed-forward network, its two halves apart so that each carries out its elementwise step."""

    def __init__(self, gate: Linear, value: Linear, out: Linear) -> None:
        self._gate = gate
        self._value = value
        self._out = out

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Tokens (T, D)."""
        return self._out(self._value.multiply(x_TD, self._gate.silu(x_TD)))


def lean_ffn(block: Block, make_linear: MakeLinear) -> LeanMlp | LeanSwiGLU:
    """The feed-forward network of a block with its norm and LayerScale folded."""
    if isinstance(block.mlp, SwiGLU):
        weight, bias = fold_norm(block.norm2, block.mlp.w12.weight.detach(), block.mlp.w12.bias.detach())
        gate, value = zip(weight.chunk(2), bias.chunk(2), strict=True)
        return LeanSwiGLU(make_linear(*gate), make_linear(*value), make_linear(*fold_layer_scale(block.mlp.w3, block.ls2.gamma)))
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    assert isinstance(fc1, nn.Linear)
    assert isinstance(fc2, nn.Linear)
    hidden = fold_norm(block.norm2, fc1.weight.detach(), fc1.bias.detach())
    return LeanMlp(make_linear(*hidden), make_linear(*fold_layer_scale(fc2, block.ls2.gamma)))


def normalise(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens with mean 0 and variance 1: a layer norm whose weight and bias are folded into what follows."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6).to(dtype)


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) that give for tokens from `normalise` what the given ones give for those from `norm`."""
    return weight * norm.weight.detach(), bias + weight @ norm.bias.detach()


def fold_layer_scale(linear: nn.Linear, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias whose output is that of `linear` times `gamma` (out,)."""
    return linear.weight.detach() * gamma.detach()[:, None], linear.bias.detach() * gamma.detach()


def fold_query_scale(qkv: nn.Linear, num_heads: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the fused projection with 1 / sqrt(d) taken into the queries."""
    weight, bias = qkv.weight.detach().clone(), qkv.bias.detach().clone()
    dim = weight.shape[1]
    scale = (dim // num_heads) ** -0.5
    weight[:dim] *= scale
    bias[:dim] *= scale
    return weight, bias


def fold_pixels(backbone: DinoVisionTransformer) -> tuple[Tensor, Tensor]:
    """Weight (D, P * P * 3) and bias (D,) of the patch embedding for pixels 0..255 less `pixel_centre`, channels innermost."""
    conv = backbone.patch_embed.proj
    mean, std = (255 * torch.tensor(stat, device=conv.weight.device).view(3, 1, 1) for stat in (backbone.mean, backbone.std))
    weight_DPP3 = (conv.weight.detach() / std).permute(0, 2, 3, 1)
    off_centre_3 = (mean.round() - mean).flatten()
    assert conv.bias is not None
    return weight_DPP3.flatten(1), conv.bias.detach() + (weight_DPP3 * off_centre_3).sum(dim=(1, 2, 3))


def pixel_centre(backbone: DinoVisionTransformer) -> Tensor:
    """The whole number nearest to the mean of each channel, in 0..255, for one row of a patch: (P * 3,) float32."""
    return (255 * torch.tensor(backbone.mean)).round().repeat(backbone.patch_size)


def stem_of(backbone: DinoVisionTransformer) -> DinoVisionTransformer:
    """A backbone without blocks that shares the embedding weights: it interpolates positions and keeps no other weights alive."""
    with torch.device("meta"):  # draws no random numbers and takes no memory
        stem = DinoVisionTransformer(replace(backbone.config, depth=0))
    stem.pos_embed = backbone.pos_embed
    stem.cls_token = backbone.cls_token
    if backbone.num_registers:
        stem.register_tokens = backbone.register_tokens
    return stem


def release_weights(module: nn.Module) -> None:
    """Free the memory of all weights of a module."""
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)
