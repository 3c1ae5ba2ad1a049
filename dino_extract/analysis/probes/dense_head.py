"""A linear head on patch tokens: a class or a depth for every pixel. It can be saved and loaded.

Dimension key: `B` images, `h w` patch grid, `H W` pixels, `D` width, `K` classes or depth bins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dino_extract.analysis.probes.dense_targets import Task
from dino_extract.analysis.probes.head_file import load_head, save_head
from dino_extract.analysis.vectors.compatible import require_compatible
from dino_extract.errors import ConfigError, StoreError
from dino_extract.results import Result
from dino_extract.store import Rows, Store

DEPTH_BINS = 256
_ARRAYS = ("weight", "bias", "mean", "std")


@dataclass(frozen=True, eq=False)
class DenseHead(Result):
    """A linear map of normalised patch tokens.

    Args:
        task: segmentation or depth.
        weight: (K, D) float32.
        bias: (K,) float32.
        mean: (D,) float32 of the training tokens.
        std: (D,) float32 of the training tokens.
        max_depth: depth of the last of the 256 bins.
        datasets: datasets of a store whose patch tokens, side by side, are the input.
        attrs: root attributes of the training store: the model, and how images were prepared.
        path: where the head was loaded from.
    """

    task: Task
    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    max_depth: float
    datasets: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    path: str = "the head"
    json_without = (*_ARRAYS, "attrs")

    def summary(self) -> str:
        """The task, and the input."""
        outputs = f"{len(self.bias):,} classes" if self.task == "segmentation" else f"depths up to {self.max_depth:g}"
        return f"{outputs} of {', '.join(self.datasets)}"

    @property
    def bins(self) -> Tensor:
        """(K,) float32 depth of each bin."""
        return torch.linspace(self.max_depth / DEPTH_BINS, self.max_depth, DEPTH_BINS)

    def logits(self, patches_BDhw: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, K, *size) float32, upsampled bilinearly from the patch grid."""
        normed = (patches_BDhw - self.mean[:, None, None]) / self.std[:, None, None]
        logits = functional.conv2d(normed, self.weight[:, :, None, None], self.bias)
        return functional.interpolate(logits, size, mode="bilinear", align_corners=False)

    def depth(self, logits_BKHW: Tensor) -> Tensor:
        """(B, H, W) the mean of the bins weighted by relu(logit) + 0.1."""
        weight_BKHW = logits_BKHW.relu() + 0.1
        return torch.einsum("bkhw,k->bhw", weight_BKHW, self.bins) / weight_BKHW.sum(dim=1)

    @torch.no_grad()
    def predict(self, patches: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
        """(B, *size) int64 classes, or float32 depths, of the pixels that the model saw.

        Args:
            patches: (B, h, w, D) patch tokens, as `inputs_of` gives them.
            size: (height, width) of the answer in pixels.

        Raises:
            ConfigError: the tokens have another width.
        """
        if patches.ndim != 4 or patches.shape[3] != self.weight.shape[1]:
            raise ConfigError(f"the head needs patch tokens (B, h, w, {self.weight.shape[1]}), got {patches.shape}")
        logits_BKHW = self.logits(torch.from_numpy(np.asarray(patches, np.float32)).permute(0, 3, 1, 2), size)
        found = logits_BKHW.argmax(dim=1) if self.task == "segmentation" else self.depth(logits_BKHW)
        return found.numpy()

    def inputs_of(self, store: Store, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """(B, h, w, D) float32 patch tokens of some images of a store.

        Raises:
            StoreError: the store is not compatible with the training store, or unfinished.
            ConfigError: a dataset is not a grid of patch tokens.
        """
        require_compatible(self, store)
        return side_by_side(patch_grids(store, self.datasets), rows)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the head as safetensors with its metadata.

        Raises:
            ConfigError: the file cannot be written, or exists.
        """
        description = {"task": self.task, "max_depth": self.max_depth, "datasets": list(self.datasets), "attrs": self.attrs}
        save_head(path, "dense_head", {name: getattr(self, name).numpy() for name in _ARRAYS}, description, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DenseHead:
        """A saved head.

        Raises:
            StoreError: there is no such file, or it is not a dense head.
        """
        arrays, known = load_head(path, "dense_head", hint="`dx.linear_dense(...).head.save(path)` makes one")
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cls(**tensors, **{**known, "datasets": tuple(known["datasets"])}, path=os.fspath(path))


def patch_grids(store: Store, datasets: tuple[str, ...]) -> list[Rows]:
    """Datasets of a finished store, each (n, h, w, D_i).

    Raises:
        StoreError: the store is unfinished, or has no such dataset.
        ConfigError: a dataset is not a grid of patch tokens.
    """
    store.require_complete()
    parts = []
    for dataset in datasets:
        rows = store[dataset]
        if not isinstance(rows, Rows) or rows.ndim != 4:
            raise ConfigError(f"`{dataset}` of `{store.path}` is not a grid of patch tokens", hint="embed with `--tokens patch`")
        parts.append(rows)
    return parts


def side_by_side(parts: list[Rows], rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    """(B, h, w, D) float32 patch tokens of some rows.

    Raises:
        StoreError: a value is NaN or infinite.
    """
    block = np.concatenate([np.asarray(part[rows], np.float32) for part in parts], axis=3)
    if not np.isfinite(block).all():
        raise StoreError("patch tokens have NaN or infinite values", hint="`dino-extract verify FILE` says whether the file was damaged")
    return block
