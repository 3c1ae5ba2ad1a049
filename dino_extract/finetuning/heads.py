"""The projection head that turns tokens into scores over prototypes.

Dimension key: D embedding width, K prototypes, T tokens of any kind laid end to end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dino_extract.finetuning.config import HeadConfig


class DINOHead(nn.Module):
    """Scores over prototypes: an MLP to a bottleneck, L2 normalisation, and the cosine to each prototype times its gain.

    Source: DINO (arXiv 2104.14294) Sec. 3.1, "Network architecture"; official dinov2/layers/dino_head.py. As there, the gains
    `last_layer.weight_g` start at 1 and are trained and weight-decayed.
    """

    def __init__(self, embed_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.mlp = _mlp(embed_dim, config)
        self.last_layer = Prototypes(config.bottleneck_dim, config.n_prototypes)
        self.init_weights()

    def init_weights(self) -> None:
        """Start values, drawn from torch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer.init_weights()

    def forward(self, tokens_TD: Tensor) -> Tensor:
        """Scores (T, K) float32 of tokens (T, D)."""
        # The norm's epsilon and the cosines need float32: in half precision 1e-12 is zero.
        bottleneck = self.mlp(tokens_TD).float()
        scores: Tensor = self.last_layer(F.normalize(bottleneck, dim=-1, eps=1e-12))
        return scores.float()


class Prototypes(nn.Module):
    """Cosine of a normalised vector with each of K prototypes, times the prototype's gain."""

    def __init__(self, bottleneck_dim: int, n_prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(n_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(n_prototypes, bottleneck_dim))

    def init_weights(self) -> None:
        """Random directions and gains of 1."""
        nn.init.trunc_normal_(self.weight_v, std=0.02)
        nn.init.ones_(self.weight_g)

    def forward(self, bottleneck: Tensor) -> Tensor:
        """Scores (T, K) of L2-normalised vectors (T, bottleneck_dim)."""
        direction = self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
        return F.linear(bottleneck, self.weight_g * direction)


def _mlp(embed_dim: int, config: HeadConfig) -> nn.Module:
    if config.nlayers == 1:
        return nn.Linear(embed_dim, config.bottleneck_dim)
    layers: list[nn.Module] = [nn.Linear(embed_dim, config.hidden_dim), nn.GELU()]
    for _ in range(config.nlayers - 2):
        layers += [nn.Linear(config.hidden_dim, config.hidden_dim), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(config.hidden_dim, config.bottleneck_dim))
