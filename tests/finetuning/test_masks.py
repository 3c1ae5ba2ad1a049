"""Masks hide the shares, in the blocks, that iBOT and BEiT describe."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_extract.finetuning.masks import block_mask, mask_batch


def test_half_of_the_crops_are_masked() -> None:
    """Of 64 crops 32 have a mask."""
    masks = mask_batch(64, (16, 16), (0, 1))

    assert masks.any(dim=1).sum() == 32


def test_ratios_are_stratified() -> None:
    """Sorted by size, the masks fill the range 0.1 to 0.5 evenly: each lies within its interval, less a few patches."""
    masks = mask_batch(64, (16, 16), (3,))

    shares = masks.float().mean(dim=1).sort().values[32:].numpy()
    edges = np.linspace(0.1, 0.5, 33)
    assert (shares <= edges[1:]).all()
    assert (shares >= edges[:-1] - 8 / 256).all()


def test_a_rank_gets_its_rows_of_the_whole_batch() -> None:
    """Masks of rows 6 to 11 alone equal those rows of all masks."""
    everything = mask_batch(12, (8, 8), (5, 7))

    part = mask_batch(12, (8, 8), (5, 7), rows=range(6, 12))

    assert torch.equal(part, everything[6:])


def test_another_step_gives_other_masks() -> None:
    """The seed decides the masks."""
    assert not torch.equal(mask_batch(8, (8, 8), (0, 1)), mask_batch(8, (8, 8), (0, 2)))


@settings(deadline=None, max_examples=50)
@given(side=st.integers(3, 37), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_no_mask_hides_more_than_asked(side: int, share: float, seed: int) -> None:
    """A mask never has more patches than its target."""
    target = int(side * side * share)

    mask = block_mask((side, side), target, np.random.default_rng(seed))

    assert mask.sum() <= target


def test_masks_come_close_to_their_target() -> None:
    """On a 16 x 16 grid the mean shortfall over 200 masks of 96 patches is under 2 patches."""
    rng = np.random.default_rng(0)

    shortfalls = [96 - block_mask((16, 16), 96, rng).sum() for _ in range(200)]

    assert np.mean(shortfalls) < 2


def test_hidden_patches_come_in_blocks() -> None:
    """A hidden patch has more than twice as many hidden neighbours as in a mask drawn patch by patch."""
    rng = np.random.default_rng(0)
    masks = [block_mask((16, 16), 64, rng) for _ in range(100)]

    neighbours = np.mean([(mask[:, 1:] & mask[:, :-1]).sum() / mask.sum() for mask in masks])

    assert neighbours > 2 * 0.25  # 64 of 256: a neighbour is hidden with probability 0.25 by chance
