"""Heads by SGD against torch's own optimiser, one learning rate at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dino_extract.analysis.probes import sgd_heads
from dino_extract.analysis.probes.sgd_heads import fit_heads
from tests.analysis.stores import blobs


def problem() -> tuple[np.ndarray, np.ndarray]:
    """120 vectors of 3 classes."""
    vectors, labels = blobs(3, 40, 6, spread=1.0)
    return vectors, np.array([int(label[-2:]) for label in labels])


def test_each_head_equals_one_trained_by_torch() -> None:
    """Side by side, every head goes the way that torch.optim.SGD with a cosine schedule takes it alone, on whole-set batches."""
    vectors, codes = problem()
    rates = (0.01, 0.1)

    weights, biases = fit_heads(vectors, codes, 3, learning_rates=rates, iterations=30, batch=120, seed=5)

    first = 0.01 * torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(5))
    for number, rate in enumerate(rates):
        head = torch.nn.Linear(6, 3)
        head.weight.data, head.bias.data = first[number].T.clone(), torch.zeros(3)
        optimiser = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9)
        for iteration in range(30):
            # torch multiplies the velocity by the current rate too, as long as the rate does not stand inside it
            optimiser.param_groups[0]["lr"] = rate * 120 / 256 * (0.5 + 0.5 * math.cos(math.pi * iteration / 30))
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(head(torch.from_numpy(vectors)), torch.from_numpy(codes)).backward()
            optimiser.step()
        np.testing.assert_allclose(weights[number], head.weight.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(biases[number], head.bias.detach().numpy(), atol=1e-5)


def test_a_set_too_large_for_memory_is_learned_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled within blocks, the heads still learn to tell the classes apart."""
    vectors, codes = problem()
    order = np.random.default_rng(0).permutation(120)
    monkeypatch.setattr(sgd_heads, "HELD_NBYTES", 0)
    monkeypatch.setattr(sgd_heads, "BLOCK_ROWS", 50)

    weights, biases = fit_heads(vectors[order], codes[order], 3, learning_rates=(0.1,), iterations=200, batch=16)

    assert ((vectors @ weights[0].T + biases[0]).argmax(axis=1) == codes).mean() > 0.9


def test_the_same_seed_gives_the_same_heads() -> None:
    """Training is repeatable."""
    vectors, codes = problem()

    one, other = (fit_heads(vectors, codes, 3, iterations=20, seed=1)[0] for _ in range(2))

    np.testing.assert_array_equal(one, other)
