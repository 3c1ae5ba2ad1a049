"""All pairs of vectors above a cosine: exactly where that is fast, else within neighbouring k-means buckets.

Dimension key: `Q` queries, `B` vectors of the bank or of a bucket, `D` width, `K` buckets, `P` buckets that a query is compared with.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.vectors.kmeans import learn_centres
from dino_extract.analysis.vectors.stored import Vectors, as_cosine, least_cosine, unit

EXACT_PRODUCTS = 4e9  # up to this number of similarities every pair is compared: 63,000 images among themselves
BUCKET_ROWS = 1000  # wanted size of a bucket: small buckets are fast, large ones miss fewer pairs
PROBES = 4  # nearest buckets that a query is compared with. `benchmarks/scale.py` measures the recall
LEARN_ITERATIONS = 8  # more iterations find no more pairs
LEARN_PER_BUCKET = 64
QUERY_ROWS = 2048
BANK_ROWS = 2048  # where all images are the same, two blocks give 4 million pairs: 500 MB while they are joined
IN_MEMORY_NBYTES = 3 << 30  # a larger bank is sorted into a temporary file instead

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]  # row of one, row of the other, cosine


def near_pairs(bank: Vectors, threshold: float, *, exact: bool | None = None, seed: int = 0) -> Iterator[Pairs]:
    """Pairs (i, j, cosine) with i < j and a cosine of at least `threshold`, in blocks. Buckets may give a pair twice.

    Args:
        bank: (n, D).
        threshold: cosine -1..1.
        exact: compare every pair. By default up to 63,000 images.
        seed: seed of the buckets.
    """
    if exact is None:
        exact = len(bank) ** 2 <= EXACT_PRODUCTS
    if exact:
        for first, query_QD in bank.unit_blocks(QUERY_ROWS):
            later = bank.take(np.arange(first, len(bank)))
            for start, bank_BD in later.unit_blocks(BANK_ROWS):
                query, other, cosine = _above(query_QD, bank_BD, threshold)
                is_pair = other + start > query
                yield query[is_pair] + first, other[is_pair] + start + first, cosine[is_pair]
        return
    for query, other, cosine in _bucket_pairs(bank, bank, threshold, seed):
        is_pair = query != other
        low, high = np.minimum(query, other), np.maximum(query, other)
        yield low[is_pair], high[is_pair], cosine[is_pair]


def near_pairs_between(queries: Vectors, bank: Vectors, threshold: float, *, exact: bool | None = None, seed: int = 0) -> Iterator[Pairs]:
    """Pairs (query, bank row, cosine) with a cosine of at least `threshold`, in blocks. The arguments are those of `near_pairs`."""
    if exact is None:
        exact = len(queries) * len(bank) <= EXACT_PRODUCTS
    if not exact:
        yield from _bucket_pairs(queries, bank, threshold, seed)
        return
    for first, query_QD in queries.unit_blocks(QUERY_ROWS):
        for start, bank_BD in bank.unit_blocks(BANK_ROWS):
            query, other, cosine = _above(query_QD, bank_BD, threshold)
            yield query + first, other + start, cosine


def _above(query_QD: Tensor, bank_BD: Tensor, threshold: float) -> Pairs:
    similarity_QB = query_QD @ bank_BD.T
    found = torch.nonzero(similarity_QB >= least_cosine(threshold))
    return found[:, 0].numpy(), found[:, 1].numpy(), as_cosine(similarity_QB[found[:, 0], found[:, 1]].numpy())


def _bucket_pairs(queries: Vectors, bank: Vectors, threshold: float, seed: int) -> Iterator[Pairs]:
    """Compare every query with the members of the buckets nearest to it.

    Two vectors that are nearly the same are nearly always in the same bucket or in neighbouring ones. The comparison within a bucket is a
    matrix product, which is faster than a search in an inverted file, one query after the other.
    """
    num_buckets = max(1, math.ceil(len(bank) / BUCKET_ROWS))
    centres_KD = learn_centres(bank, num_buckets, seed=seed, iterations=LEARN_ITERATIONS, sample_per_cluster=LEARN_PER_BUCKET)
    num_probes = min(PROBES, num_buckets)
    nearest_bank = nearest_buckets(bank, centres_KD, num_probes if queries is bank else 1)
    nearest_queries = nearest_bank if queries is bank else nearest_buckets(queries, centres_KD, num_probes)
    member_rows, member_bounds = _lists(nearest_bank[:, :1], num_buckets)
    query_rows, query_bounds = _lists(nearest_queries, num_buckets)
    with tempfile.TemporaryFile() as spill:
        place = np.empty(len(bank), np.int64)  # of each row in bucket order
        place[member_rows] = np.arange(len(bank))
        sorted_nD = _in_order(bank, place, spill)
        for bucket in range(num_buckets):
            rows = query_rows[query_bounds[bucket] : query_bounds[bucket + 1]]
            end = int(member_bounds[bucket + 1])
            for start in range(int(member_bounds[bucket]), end, BANK_ROWS):
                members = slice(start, min(start + BANK_ROWS, end))
                member_BD = unit(sorted_nD[members].astype(np.float32))  # normalised again, because float16 has changed the length
                for first in range(0, len(rows), QUERY_ROWS):
                    some = rows[first : first + QUERY_ROWS]
                    if queries is bank:
                        query_QD = unit(sorted_nD[place[some]].astype(np.float32))
                    else:
                        query_QD = unit(queries[some])
                    query, other, cosine = _above(query_QD, member_BD, threshold)
                    yield some[query], member_rows[members][other], cosine


def nearest_buckets(vectors: Vectors, centres_KD: Tensor, count: int) -> NDArray[np.int32]:
    """(n, P) int32 the buckets nearest to each vector, nearest first."""
    found = np.empty((len(vectors), count), np.int32)
    for first, block_BD in vectors.unit_blocks(QUERY_ROWS):
        found[first : first + len(block_BD)] = (block_BD @ centres_KD.T).topk(count, dim=1).indices.numpy()
    return found


def _lists(buckets_nP: NDArray[np.int32], num_buckets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows ordered by bucket, and the (K + 1,) bounds of the rows of each bucket. A row is in every bucket that `buckets_nP` names."""
    order = np.argsort(buckets_nP, axis=None, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(buckets_nP.ravel(), minlength=num_buckets))])
    return order // buckets_nP.shape[1], bounds


def _in_order(bank: Vectors, place: NDArray[np.int64], spill: IO[bytes]) -> NDArray[np.float16]:
    """(n, D) float16 unit vectors in the order of `place`: in memory, or in a temporary file where they are too large."""
    shape, nbytes = (len(bank), bank.dim), 2 * len(bank) * bank.dim
    if nbytes <= IN_MEMORY_NBYTES:
        rows: NDArray[np.float16] = np.empty(shape, np.float16)
    else:
        spill.truncate(nbytes)
        rows = np.memmap(spill, np.float16, "r+", shape=shape)
    for first, block in bank.unit_blocks():
        rows[place[first : first + len(block)]] = block.numpy()
    return rows
