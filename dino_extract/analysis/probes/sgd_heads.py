"""Linear heads by SGD, one for every learning rate of the official grid, trained side by side in one pass over the vectors.

Dimension key: `L` learning rates, `B` batch, `D` width, `C` classes.
Source: official dinov2/eval/linear.py: SGD with momentum 0.9, no weight decay, cosine schedule to 0, 12,500 iterations of batch 128,
learning rates scaled by batch / 256. The official code picks the best head on the validation set that it reports. Our caller picks it on
held-out training images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.vectors.stored import Vectors, VectorSource, as_vectors

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
ITERATIONS = 12_500
BATCH = 128
MOMENTUM = 0.9
HELD_NBYTES = 2 << 30  # in float32. Larger sets are shuffled within blocks of neighbouring rows of the file
BLOCK_ROWS = 65_536


def fit_heads(
    vectors: VectorSource,
    codes: NDArray[np.int64],
    num_classes: int,
    *,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    iterations: int = ITERATIONS,
    batch: int = BATCH,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (L, C, D) and biases (L, C) of one head per learning rate, float64.

    Args:
        vectors: (n, D).
        codes: (n,) int64 class of each.
        num_classes: C.
        learning_rates: before scaling by batch / 256.
        iterations: number of steps of every head.
        batch: number of images per step, all of them if there are fewer.
        seed: seed of the first weights and of the order of the images.
    """
    vectors = as_vectors(vectors)
    generator = torch.Generator().manual_seed(seed)
    rates_L = torch.tensor(learning_rates)[:, None, None] * batch / 256
    weight_LDC = 0.01 * torch.randn(len(learning_rates), vectors.dim, num_classes, generator=generator)
    bias_L1C = torch.zeros(len(learning_rates), 1, num_classes)
    speed_LDC, speed_L1C = torch.zeros_like(weight_LDC), torch.zeros_like(bias_L1C)
    steps = _batches(vectors, torch.from_numpy(codes), min(batch, len(vectors)), generator)
    for iteration in range(iterations):
        batch_BD, codes_B = next(steps)
        error_LBC = torch.softmax(batch_BD @ weight_LDC + bias_L1C, dim=2)
        error_LBC[:, torch.arange(len(codes_B)), codes_B] -= 1.0
        error_LBC /= len(codes_B)
        rate_L = rates_L * (0.5 + 0.5 * math.cos(math.pi * iteration / iterations))
        speed_LDC.mul_(MOMENTUM).add_(batch_BD.T @ error_LBC)
        speed_L1C.mul_(MOMENTUM).add_(error_LBC.sum(dim=1, keepdim=True))
        weight_LDC -= rate_L * speed_LDC
        bias_L1C -= rate_L * speed_L1C
    return weight_LDC.transpose(1, 2).double().numpy(), bias_L1C[:, 0].double().numpy()


def _batches(vectors: Vectors, codes: Tensor, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end. The last images of an epoch or block that do not fill a batch are dropped."""
    is_held = len(vectors) * vectors.dim * 4 <= HELD_NBYTES
    rows = len(vectors) if is_held else max(BLOCK_ROWS, batch)
    held = torch.from_numpy(vectors[:]) if is_held else None
    starts = list(range(0, len(vectors) - batch + 1, rows))
    while True:
        for number in torch.randperm(len(starts), generator=generator).tolist():
            block = held if held is not None else torch.from_numpy(vectors[starts[number] : starts[number] + rows])
            order = torch.randperm(len(block), generator=generator)
            for chosen in order.split(batch):
                if len(chosen) == batch:
                    yield block[chosen], codes[starts[number] + chosen]
