"""The backbone made ready for inference: uint8 pixels in, tokens in storage dtype out.

Dimension key as in backbone.py.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dino_extract.backbone import Backbone, Tokens
from dino_extract.errors import ConfigError
from dino_extract.tokens import DATASET_OF, TokenKind, TokenSpec

ComputeDtype = Literal["float32", "bfloat16"]
StoreDtype = Literal["float16", "float32"]

# Tokens x width of one batch that keep a core's matrix products in cache: 16 images of ViT-S at 224 pixels.
CPU_BATCH_ELEMENTS = 16 * 257 * 384
# Likewise for a GPU, large enough to fill its matrix units: 256 images of ViT-S at 224 pixels.
CUDA_BATCH_ELEMENTS = 256 * 257 * 384


def choose_device(device: str) -> torch.device:
    """The torch device of `--device`: `auto` is the first CUDA GPU, or the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device `{device}` cannot be used: {reason}", hint="`dino-extract doctor` lists what this machine has"
        ) from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> ComputeDtype:
    """The compute dtype of `--dtype`: `auto` is bfloat16 where the hardware multiplies it fast, else float32."""
    if dtype in ("float32", "bfloat16"):
        return dtype  # type: ignore[return-value]  # narrowed by the line above
    if dtype != "auto":
        raise ConfigError(f"`--dtype` takes auto, float32 or bfloat16, got `{dtype}`")
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def choose_batch_size(backbone: Backbone, size: tuple[int, int], device: torch.device, num_images: int) -> int:
    """A batch size, a power of two, that keeps this device busy without filling its memory.

    Args:
        backbone: the model.
        size: image height and width in pixels.
        device: where the model runs.
        num_images: images of the whole job; a small job gets no larger batch than it has images.
    """
    num_tokens = 1 + backbone.num_registers + (size[0] // backbone.patch_size) * (size[1] // backbone.patch_size)
    elements = CUDA_BATCH_ELEMENTS if device.type == "cuda" else CPU_BATCH_ELEMENTS
    fitting = max(1, elements // (num_tokens * backbone.embed_dim))
    return max(1, min(2 ** (fitting.bit_length() - 1), 256, num_images))


class Engine:
    """Runs a backbone over fixed-size batches of pixels.

    Args:
        backbone: the model, in eval mode with float32 weights.
        spec: the tokens to keep.
        device: where to run.
        dtype: of the matrix products; the final norm and the mean of patches stay in float32.
        store_dtype: of the returned arrays.
        batch_size: every batch is padded to this many images, so that the same kernels run whatever the batch holds.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TokenSpec,
        *,
        device: torch.device,
        dtype: ComputeDtype,
        store_dtype: StoreDtype = "float16",
        batch_size: int,
    ) -> None:
        self.backbone = backbone.to(device)
        self.spec = spec
        self.device = device
        self.dtype = getattr(torch, dtype)
        self.store_dtype: torch.dtype = getattr(torch, store_dtype)
        self.batch_size = batch_size
        self._mean = torch.tensor(backbone.mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(backbone.std, device=device).view(3, 1, 1) * 255

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Token arrays by dataset name, each (B, ...) in storage dtype.

        Args:
            pixels: (B, H, W, 3) uint8, RGB, 0..255; B at most `batch_size`.
        """
        count = len(pixels)
        while True:
            try:
                parts = [self._run(part) for part in np.array_split(pixels, range(self.batch_size, count, self.batch_size))]
                break
            except torch.cuda.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @torch.inference_mode()
    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        padded = torch.zeros(self.batch_size, *pixels.shape[1:], dtype=torch.uint8)
        padded[: len(pixels)] = torch.from_numpy(pixels)
        images = (padded.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() - self._mean) / self._std
        grid = (pixels.shape[1] // self.backbone.patch_size, pixels.shape[2] // self.backbone.patch_size)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            tokens_of = self._tokens(images)
        return {
            prefix + DATASET_OF[kind]: self._select(tokens, kind, grid)[: len(pixels)].to(self.store_dtype).cpu().numpy()
            for prefix, tokens in tokens_of.items()
            for kind in self.spec.kinds
        }

    def _tokens(self, images: Tensor) -> dict[str, Tokens]:
        """Tokens of the final output (prefix "") and of each wanted layer, from one pass."""
        if not self.spec.layers:
            return {"": self.backbone(images)}
        last = self.backbone.depth - 1
        layers = sorted({*self.spec.layers, last})
        tokens = dict(zip(layers, self.backbone.intermediate_layers(images, layers), strict=True))
        return {"": tokens[last]} | {f"layers/{layer}/": tokens[layer] for layer in self.spec.layers}

    @staticmethod
    def _select(tokens: Tokens, kind: TokenKind, grid: tuple[int, int]) -> Tensor:
        if kind == "cls":
            return tokens.cls
        if kind == "registers":
            return tokens.registers
        if kind == "mean":
            return tokens.patches.float().mean(dim=1)
        return tokens.patches.unflatten(1, grid)
