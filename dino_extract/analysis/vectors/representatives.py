"""Which images of a group of near-duplicates stay, so that every image that goes is nearly the same as one that stays.

A greedy maximal independent set. Keeping one image of each connected component, as was done for LVD-142M, would drop the far end of a
chain for an image that it does not resemble.

Dimension key: `r` rows, `D` width, `T` thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.vectors.stored import Vectors, as_cosine, least_cosine, unit

BLOCK_ROWS = 2048  # with itself: 16 MB of similarities


def representatives(
    vectors: Vectors, group: NDArray[np.int64], thresholds: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each vector, the first one of its group that it is nearly the same as and that stays; itself if it stays.

    From first to last, a vector stays unless it is within the threshold of an earlier one of its group that stays. So everything that
    goes is within the threshold of something that stays, and no two of a group that stay are within the threshold of each other.

    Args:
        vectors: (r, D), group after group, in each group the best first.
        group: (r,) number of the group, ascending.
        thresholds: (T,) cosines from which two are nearly the same; each is answered by itself.

    Returns:
        representative (T, r) int64 position of the one that stays, and similarity (T, r) float32 cosine to it.
    """
    found = np.full((len(thresholds), len(vectors)), -1, np.int64)
    similarity = np.ones(found.shape, np.float32)
    ends = np.searchsorted(group, group, side="right")  # of the group of each
    for first in range(0, len(vectors), BLOCK_ROWS):
        block = unit(vectors[first : first + BLOCK_ROWS])
        last = first + len(block)
        cosine = (block @ block.T).numpy()
        for step, threshold in enumerate(thresholds):
            for row in range(first, last):
                if found[step, row] >= 0:
                    continue
                later = slice(row, min(int(ends[row]), last))
                to_later = cosine[row - first, row - first : later.stop - first]
                goes = (to_later >= least_cosine(threshold)) & (found[step, later] < 0)
                found[step, later][goes], similarity[step, later][goes] = row, to_later[goes]
                found[step, row], similarity[step, row] = row, 1
        # A group that goes on after the block: what stays here decides about the rest of it.
        begin = max(first, int(np.searchsorted(group, group[last - 1])))
        stays = found[:, begin:last] == np.arange(begin, last)  # (T, rows of the block)
        for start in range(last, int(ends[last - 1]), BLOCK_ROWS):
            later = slice(start, min(start + BLOCK_ROWS, int(ends[last - 1])))
            to_later = (block[begin - first :] @ unit(vectors[later]).T).numpy()
            for step, threshold in enumerate(thresholds):
                is_near = (to_later >= least_cosine(threshold)) & stays[step][:, None]
                nearest = is_near.argmax(axis=0)  # the first that stays
                goes = is_near.any(axis=0) & (found[step, later] < 0)
                found[step, later][goes] = begin + nearest[goes]
                similarity[step, later][goes] = to_later[nearest[goes], np.flatnonzero(goes)]
    return found, as_cosine(similarity)
