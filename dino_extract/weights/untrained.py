"""Backbones with random weights: for tests, timing and smoke runs; their features mean nothing but differ between images."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer

RANDOM_WEIGHTS_WARNING = "random weights: the features tell images apart but mean nothing; never use them for results"


def untrained_backbone(config: BackboneConfig, seed: int) -> DinoVisionTransformer:
    """A backbone in eval mode whose weights depend on the seed alone; torch's global generator is left as it is.

    LayerScale is 1 and every linear layer keeps the variance of its input, so that the CLS token sees the image: with the start
    values of training it would be nearly the same vector for every image.
    """
    with torch.device("meta"):
        model = DinoVisionTransformer(replace(config, layer_scale_init=1.0))
    generator = torch.Generator().manual_seed(seed)
    state = {key: _random(key, tensor, generator) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _random(key: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if key.endswith(("norm.weight", "norm1.weight", "norm2.weight", ".gamma")):
        return torch.ones(like.shape)
    if key.endswith(".bias"):
        return torch.zeros(like.shape)
    # A uniform distribution, because its draws are the same bits on every processor; sqrt(3) gives it the standard deviation 1.
    fan_in = math.prod(like.shape[1:]) if like.ndim in (2, 4) and key != "mask_token" else None
    bound = math.sqrt(3) * (1 / math.sqrt(fan_in) if fan_in else 0.02)
    return torch.empty(like.shape).uniform_(-bound, bound, generator=generator)
