"""Mean and covariance of more vectors than fit in memory, and their principal axes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def moments(blocks: Iterable[NDArray[np.floating]]) -> tuple[int, Floats, Floats]:
    """Number, mean (D,) and scatter matrix (D, D) of all vectors in blocks (n, D), in float64.

    The covariance is the scatter divided by the number. Without a vector, D is 0.

    Source: Chan, Golub, LeVeque 1979, pairwise update of means and scatter matrices.
    """
    count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for block in blocks:
        flat = block.astype(np.float64)
        if len(flat) == 0:
            continue
        if count == 0:
            mean, scatter = np.zeros(flat.shape[1]), np.zeros((flat.shape[1], flat.shape[1]))
        block_mean = flat.mean(axis=0)
        flat -= block_mean
        shift, total = block_mean - mean, count + len(flat)
        scatter += flat.T @ flat
        scatter += np.outer(shift, shift) * (count * len(flat) / total)
        mean, count = mean + shift * (len(flat) / total), total
    return count, mean, scatter


def principal_axes(covariance: Floats, count: int) -> tuple[Floats, Floats]:
    """The largest eigenvalues (count,) and their unit vectors (count, D), each with its largest entry positive."""
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :count].T
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return np.maximum(values[::-1][:count], 0), axes * np.where(largest < 0, -1.0, 1.0)
