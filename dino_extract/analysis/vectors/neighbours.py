"""The exact nearest neighbours by cosine similarity, in memory that does not grow with the number of rows.

Dimension key: `Q` queries in a block, `B` bank vectors in a block, `D` width, `k` neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.vectors.stored import VectorSource, as_cosine, as_vectors, require_same_dim
from dino_extract.errors import ConfigError

QUERY_ROWS = 2048  # with a bank block of 8192: 64 MB of similarities at a time
HELD_NBYTES = 512 << 20  # a bank up to this size stays in memory for all blocks of queries, a larger one is read again for each


def nearest(
    queries: VectorSource, bank: VectorSource, k: int, *, leave_one_out: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k bank vectors most similar to each query, best first, equal ones in the order of the bank.

    Args:
        queries: (q, D).
        bank: (n, D).
        k: number of neighbours of each query, fewer where the bank has fewer.
        leave_one_out: queries and bank are the same vectors, and no vector is its own neighbour.

    Returns:
        similarity (q, k) float32 cosine -1..1, and position in the bank (q, k) int64.

    Raises:
        ConfigError: the widths differ, or the bank has no possible neighbour.
    """
    found = list(nearest_blocks(queries, bank, k, leave_one_out=leave_one_out))
    if not found:
        return np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
    return np.concatenate([similarity for _, similarity, _ in found]), np.concatenate([index for _, _, index in found])


def nearest_blocks(
    queries: VectorSource, bank: VectorSource, k: int, *, leave_one_out: bool = False, query_rows: int = QUERY_ROWS
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
    """As `nearest`, a block of queries at a time, as (number of the first query, similarity, position)."""
    queries, bank = as_vectors(queries, "the queries"), as_vectors(bank, "the bank")
    require_same_dim(queries, bank)
    k = min(k, len(bank) - leave_one_out)
    if k < 1:
        raise ConfigError(f"{bank.name} has {len(bank)} images, which is too few for a neighbour")
    is_held = len(queries) > query_rows and len(bank) * bank.dim * 4 <= HELD_NBYTES
    held = list(bank.unit_blocks()) if is_held else None
    for first, query_QD in queries.unit_blocks(query_rows):
        best = torch.empty(len(query_QD), 0), torch.empty(len(query_QD), 0, dtype=torch.int64)
        for start, bank_BD in held if held is not None else bank.unit_blocks():
            similarity_QB = query_QD @ bank_BD.T
            if leave_one_out:
                _forget_self(similarity_QB, first - start)
            similarity_Qk, index_Qk = top_stable(similarity_QB, k)
            # The best so far are in front and have lower positions, so a stable sort keeps ties in the order of the bank.
            similarity = torch.cat([best[0], similarity_Qk], dim=1)
            index = torch.cat([best[1], index_Qk + start], dim=1)
            similarity, order = similarity.sort(dim=1, descending=True, stable=True)
            best = similarity[:, :k], index.gather(1, order[:, :k])
        yield first, as_cosine(best[0].numpy()), best[1].numpy()


def _forget_self(similarity_QB: Tensor, offset: int) -> None:
    """Set the cosine of each query to itself to -inf; `offset` is the number of the first query minus that of the first bank vector."""
    if -len(similarity_QB) < offset < similarity_QB.shape[1]:
        similarity_QB.diagonal(offset).fill_(-torch.inf)


def top_stable(values_QB: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their columns, largest first, equal ones by column.

    `torch.topk` alone does not say which of several equal values it returns.
    """
    width = values_QB.shape[1]
    if width <= k:
        return values_QB.sort(dim=1, descending=True, stable=True)
    values, columns = values_QB.topk(k + 1, dim=1)
    is_tied = values[:, k] == values[:, k - 1]  # the last value that is returned equals the first that is not
    columns = columns[:, :k].sort(dim=1).values
    values, order = values_QB.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if is_tied.any():
        tied_values, tied_columns = values_QB[is_tied].sort(dim=1, descending=True, stable=True)
        values[is_tied], columns[is_tied] = tied_values[:, :k], tied_columns[:, :k]
    return values, columns
