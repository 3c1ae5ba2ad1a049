"""A backbone as the engine runs it: uint8 pixels in, one tensor for each dataset out.

Dimension key as in backbone.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dino_extract.backbone import Backbone, Tokens
from dino_extract.engine.lean import LeanTransformer
from dino_extract.tokens import TokenSpec

# Tokens after each of some blocks and the final norm, for pixels (B, H, W, 3) uint8: the patches may be missing where no one asks.
LayerTokens = Callable[[Tensor, list[int]], list[Tokens]]


class Network(Protocol):
    """Everything of the model that runs on the device for one batch."""

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Tensors (B, ...) in storage dtype by dataset name, for pixels (B, H, W, 3) uint8 RGB on the device."""


class TokenNetwork:
    """Gives the datasets of a token specification.

    Args:
        layer_tokens: the model.
        spec: the tokens to keep.
        depth: blocks of the model.
        patch_size: side of a patch in pixels.
        store_dtype: of the result.
        prepare: called with the patch grid (h, w) of each batch before the model, outside of what is compiled.
    """

    def __init__(
        self,
        layer_tokens: LayerTokens,
        spec: TokenSpec,
        *,
        depth: int,
        patch_size: int,
        store_dtype: torch.dtype,
        prepare: Callable[[tuple[int, int]], None] | None = None,
    ) -> None:
        self._layer_tokens = layer_tokens
        self._spec = spec
        self._last = depth - 1
        self._patch_size = patch_size
        self._store_dtype = store_dtype
        self._prepare = prepare

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """As in `Network`."""
        grid = (pixels.shape[1] // self._patch_size, pixels.shape[2] // self._patch_size)
        if self._prepare is not None:
            self._prepare(grid)
        layers = sorted({*self._spec.layers, self._last})
        tokens_of = dict(zip(layers, self._layer_tokens(pixels, layers), strict=True))
        return {
            name: kind.select(tokens_of[self._last if layer is None else layer], grid).to(self._store_dtype).contiguous()
            for name, kind, layer in self._spec.outputs()
        }


class LeanTokens:
    """Tokens from a `LeanTransformer`."""

    def __init__(self, transformer: LeanTransformer, num_registers: int) -> None:
        self._transformer = transformer
        self._num_registers = num_registers

    def __call__(self, pixels: Tensor, layers: list[int]) -> list[Tokens]:
        """As in `LayerTokens`."""
        return [Tokens.split(x_BSD, self._num_registers) for x_BSD in self._transformer(pixels, layers)]

    def prepare(self, grid: tuple[int, int]) -> None:
        """Make the positions of a patch grid, on the host, so that neither a compiler nor a CUDA graph meets that."""
        self._transformer.positions(grid)

    def forget_positions(self) -> None:
        """Let go of all positions; no CUDA graph that has taken them in may run any more."""
        self._transformer.forget_positions()


class AnyTokens:
    """Tokens from any backbone, as it is, in mixed precision where `dtype` is not float32.

    Args:
        backbone: the model; moved to `device`.
        device: where to run.
        dtype: of the matrix products.
    """

    def __init__(self, backbone: Backbone, *, device: torch.device, dtype: torch.dtype) -> None:
        self._backbone = backbone.to(device)
        self._device = device
        self._dtype = dtype
        self._mean, self._std = (255 * torch.tensor(stat, device=device).view(3, 1, 1) for stat in (backbone.mean, backbone.std))

    def __call__(self, pixels: Tensor, layers: list[int]) -> list[Tokens]:
        """As in `LayerTokens`."""
        images = (pixels.permute(0, 3, 1, 2).float() - self._mean) / self._std
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            if layers == [self._backbone.depth - 1]:
                return [self._backbone(images)]
            return self._backbone.intermediate_layers(images, layers)
