"""Small pictures whose mean colour is known, and a model that gives back just that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_extract.backbone import Backbone, Tokens


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour of its own for each of the first thousand pictures."""
    return (number % 10 * 25, number // 10 % 10 * 25, number // 100 * 25)


def save_pictures(folder: Path, numbers: Sequence[int], *, side: int = 40) -> None:
    """One PNG of a single colour for each number, in two sub-folders, named in order."""
    for number in numbers:
        path = folder / ("even" if number % 2 == 0 else "odd") / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side + number % 7, side), colour_of(number)).save(path)


class MeanColour(Backbone):
    """A model you can compute in your head: every token is the mean colour (0..255) of its pixels."""

    embed_dim, depth, patch_size, num_registers = 3, 2, 14, 0
    mean, std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tokens:
        """CLS: mean colour of the image; patches: mean colour of each patch."""
        self.calls += 1
        patches = torch.nn.functional.avg_pool2d(images.float(), self.patch_size).flatten(2).transpose(1, 2)
        return Tokens(images.float().mean(dim=(2, 3)), images.new_zeros(len(images), 0, 3), patches)

    def intermediate_layers(self, images: Tensor, layers: Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """The same tokens for every layer."""
        return [self.forward(images) for _ in layers]


def mean_colours(keys: Sequence[str]) -> np.ndarray:
    """(n, 3) what `MeanColour` gives for pictures of `save_pictures`, by their keys."""
    return np.array([colour_of(int(Path(key).stem)) for key in keys], np.float32)


def real_photographs() -> dict[str, Image.Image]:
    """Photographs that come with scikit-image, by name."""
    data = pytest.importorskip("skimage.data", reason="scikit-image and its photographs are not installed")
    return {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in ("astronaut", "chelsea", "coffee", "rocket", "brick")}
