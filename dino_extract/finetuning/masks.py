"""Which patches of the global crops are hidden from the student.

Dimension key: C global crops of a batch, h w patch grid, N = h * w patches.

Source: iBOT (arXiv 2111.07832) Sec. 3.2 and BEiT (arXiv 2106.08254) Sec. 2.3, Algorithm 1; official dinov2/data/masking.py, collate.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MIN_BLOCK = 4  # patches of the smallest block
ASPECT_LOG = math.log(1 / 0.3)  # block aspect ratios are drawn between 0.3 and 1 / 0.3, log-uniform
TRIES_PER_BLOCK = 10


def mask_batch(
    num_crops: int,
    grid: tuple[int, int],
    seed: tuple[int, ...],
    *,
    rows: Sequence[int] | None = None,
    mask_probability: float = 0.5,
    mask_ratio_min_max: tuple[float, float] = (0.1, 0.5),
) -> Tensor:
    """Masks (C, N) bool of a batch, True where a patch is hidden.

    Exactly int(C * mask_probability) crops are masked. Their target ratios are stratified: the range is cut in as many equal intervals
    as crops are masked and each crop draws from its own, so every batch sees small and large masks.

    Args:
        num_crops: global crops C of the whole batch, over all ranks.
        grid: patch grid (h, w).
        seed: integers that fix the draw; each crop's mask depends on them and its number alone.
        rows: crops of this rank; all where None. The other ranks' masks are not computed.
        mask_probability: share of the crops that are masked.
        mask_ratio_min_max: range of the share of patches hidden in a masked crop.
    """
    rows = range(num_crops) if rows is None else rows
    ratios = _stratified_ratios(num_crops, seed, mask_probability, mask_ratio_min_max)
    masks = np.zeros((len(rows), *grid), dtype=bool)
    for mask, crop in zip(masks, rows, strict=True):
        if ratios[crop] > 0:
            rng = np.random.default_rng((*seed, 1, crop))
            mask[:] = block_mask(grid, int(grid[0] * grid[1] * ratios[crop]), rng)
    return torch.from_numpy(masks).flatten(1)


def block_mask(grid: tuple[int, int], target: int, rng: np.random.Generator, max_share: float = 0.5) -> np.ndarray:
    """Mask (h, w) bool made of rectangles, with at most `target` patches and usually within a few of it.

    Args:
        grid: patch grid (h, w).
        target: patches to hide.
        rng: source of randomness.
        max_share: one rectangle adds at most this share of the grid's patches.
    """
    mask = np.zeros(grid, dtype=bool)
    hidden = 0
    while hidden < target:
        added = _add_block(mask, min(target - hidden, max_share * mask.size), rng)
        if added == 0:
            break
        hidden += added
    return mask


def _stratified_ratios(num_crops: int, seed: tuple[int, ...], probability: float, min_max: tuple[float, float]) -> np.ndarray:
    """The target share of hidden patches of each crop, (C,) float64, 0 for those that are not masked."""
    rng = np.random.default_rng((*seed, 0))
    masked = int(num_crops * probability)
    edges = np.linspace(*min_max, masked + 1)
    ratios = np.zeros(num_crops)
    ratios[:masked] = rng.uniform(edges[:-1], edges[1:])
    rng.shuffle(ratios)
    return ratios


def _add_block(mask: np.ndarray, max_patches: float, rng: np.random.Generator) -> int:
    """Hide one rectangle in place that adds between 1 and `max_patches` patches; the number added, 0 if ten tries found none."""
    height, width = mask.shape
    for _ in range(TRIES_PER_BLOCK):
        # With fewer than MIN_BLOCK patches left the range is reversed; the draw still lies between the two.
        for_area, for_aspect, for_top, for_left = rng.random(4).tolist()
        area = MIN_BLOCK + for_area * (max_patches - MIN_BLOCK)
        aspect = math.exp((2 * for_aspect - 1) * ASPECT_LOG)
        block_h, block_w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if block_h >= height or block_w >= width:
            continue
        top, left = int(for_top * (height - block_h + 1)), int(for_left * (width - block_w + 1))
        block = mask[top : top + block_h, left : left + block_w]
        added = block.size - np.count_nonzero(block)
        if 0 < added <= max_patches:
            block[:] = True
            return added
    return 0
