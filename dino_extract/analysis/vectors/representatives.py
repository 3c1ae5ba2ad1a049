"""Choose which images of each near-duplicate group to keep, so that every dropped image has a kept near-duplicate.

The kept images are a greedy maximal independent set. Keeping one image of each connected component, as was done for LVD-142M, would drop
the end of a chain although it does not resemble the kept image.

Dimension key: `r` rows, `D` width, `T` thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.vectors.stored import Vectors, as_cosine, least_cosine, unit

BLOCK_ROWS = 2048  # 16 MB of similarities of a block with itself


def representatives(
    vectors: Vectors, group: NDArray[np.int64], thresholds: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each vector, the first kept vector of its group that is nearly the same: itself if it is kept.

    From first to last, a vector is kept unless it is within the threshold of an earlier kept vector of its group. So every dropped vector
    is within the threshold of a kept one, and no two kept vectors of a group are within the threshold of each other.

    Args:
        vectors: (r, D), group after group, the best vector of each group first.
        group: (r,) number of the group, ascending.
        thresholds: (T,) cosines from which two vectors are nearly the same. Each threshold has its own answer.

    Returns:
        representative (T, r) int64 position of the kept vector, and similarity (T, r) float32 cosine to it.
    """
    found = np.full((len(thresholds), len(vectors)), -1, np.int64)
    similarity = np.ones(found.shape, np.float32)
    ends = np.searchsorted(group, group, side="right")  # end of the group of each row
    for first in range(0, len(vectors), BLOCK_ROWS):
        block = unit(vectors[first : first + BLOCK_ROWS])
        _decide_block(found, similarity, block, first, ends, thresholds)
        # A group that goes on after the block: its kept vectors in this block decide about the rest of the group.
        last = first + len(block)
        begin = max(first, int(np.searchsorted(group, group[last - 1])))
        is_kept = found[:, begin:last] == np.arange(begin, last)  # (T, rows of the block)
        for start in range(last, int(ends[last - 1]), BLOCK_ROWS):
            later = slice(start, min(start + BLOCK_ROWS, int(ends[last - 1])))
            to_later = (block[begin - first :] @ unit(vectors[later]).T).numpy()
            for step, threshold in enumerate(thresholds):
                is_near = (to_later >= least_cosine(threshold)) & is_kept[step][:, None]
                nearest = is_near.argmax(axis=0)  # the first kept vector
                is_dropped = is_near.any(axis=0) & (found[step, later] < 0)
                found[step, later][is_dropped] = begin + nearest[is_dropped]
                similarity[step, later][is_dropped] = to_later[nearest[is_dropped], np.flatnonzero(is_dropped)]
    return found, as_cosine(similarity)


def _decide_block(
    found: NDArray[np.int64],
    similarity: NDArray[np.float32],
    block: Tensor,
    first: int,
    ends: NDArray[np.int64],
    thresholds: Sequence[float],
) -> None:
    """Decide about the rows of a block that no earlier block has decided, for each threshold."""
    last = first + len(block)
    cosine = (block @ block.T).numpy()
    for step, threshold in enumerate(thresholds):
        for row in range(first, last):
            if found[step, row] >= 0:
                continue
            later = slice(row, min(int(ends[row]), last))
            to_later = cosine[row - first, row - first : later.stop - first]
            is_dropped = (to_later >= least_cosine(threshold)) & (found[step, later] < 0)
            found[step, later][is_dropped], similarity[step, later][is_dropped] = row, to_later[is_dropped]
            found[step, row], similarity[step, row] = row, 1
