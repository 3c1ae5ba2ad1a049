"""k-means on the unit sphere: with a seed, in blocks, and without empty clusters.

Dimension key: `B` vectors in a block, `D` width, `K` clusters, `T` draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.vectors.stored import Vectors, VectorSource, as_vectors
from dino_extract.errors import ConfigError
from dino_extract.results import Result

SAMPLE_PER_CLUSTER = 256  # more vectors per cluster hardly move its centre (as in faiss)
ITERATIONS = 20
_SIMILARITIES = 16 << 20  # computed at a time: 64 MB
_SEEDING_SAMPLE = 16  # candidates per cluster that the first centres are chosen from


@dataclass(frozen=True, eq=False)
class Clusters(Result):
    """A division of vectors into clusters.

    Args:
        centres: (K, D) float32, length 1.
        codes: (n,) int64 cluster of each vector.
        similarity: (n,) float32 cosine to the centre.
    """

    centres: NDArray[np.float32]
    codes: NDArray[np.int64]
    similarity: NDArray[np.float32]
    json_without = ("centres",)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(K,) int64 number of vectors in each cluster."""
        return np.bincount(self.codes, minlength=len(self.centres))

    def rows(self, cluster: int) -> NDArray[np.int64]:
        """(m,) int64 rows of the vectors in a cluster, the most typical first."""
        rows = np.flatnonzero(self.codes == cluster)
        return rows[np.argsort(-self.similarity[rows], kind="stable")]

    def summary(self) -> str:
        """Number of vectors and of clusters."""
        return f"{len(self.codes):,} vectors in {len(self.centres):,} clusters"

    def table(self) -> list[dict[str, Any]]:
        """A row for each cluster."""
        total = np.bincount(self.codes, weights=self.similarity, minlength=len(self.centres))
        mean = total / np.maximum(self.sizes, 1)
        columns = zip(self.sizes.tolist(), mean.tolist(), strict=True)
        return [{"cluster": number, "images": size, "mean_similarity": value} for number, (size, value) in enumerate(columns)]


def kmeans(vectors: VectorSource, clusters: int, *, seed: int = 0, iterations: int = ITERATIONS) -> Clusters:
    """Divide vectors into clusters of similar direction, numbered by size, the largest first.

    The centres are learned on at most 256 vectors per cluster. Then each vector belongs to the nearest centre.

    Args:
        vectors: (n, D).
        clusters: K.
        seed: seed of the sample and of the first centres.
        iterations: the most iterations. It ends earlier when no vector changes its cluster.

    Raises:
        ConfigError: there are fewer vectors than clusters.
    """
    vectors = as_vectors(vectors)
    centres_KD = learn_centres(vectors, clusters, seed=seed, iterations=iterations)
    codes, similarity = assign(vectors, centres_KD)
    order, codes = largest_first(codes, clusters)
    return Clusters(centres_KD.numpy()[order], codes, similarity)


def largest_first(codes: NDArray[np.int64], clusters: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(K,) numbers of the clusters by size, and (n,) codes with the new numbers.

    `largest_first([0, 1, 1, 2], 3)` is `[1, 0, 2], [1, 0, 0, 2]`.
    """
    order = np.argsort(-np.bincount(codes, minlength=clusters), kind="stable")
    return order, np.argsort(order)[codes]


def learn_centres(
    vectors: Vectors, clusters: int, *, seed: int = 0, iterations: int = ITERATIONS, sample_per_cluster: int = SAMPLE_PER_CLUSTER
) -> Tensor:
    """(K, D) float32 centres of length 1, learned on a sample in memory.

    Raises:
        ConfigError: there are fewer vectors than clusters.
    """
    if not 1 <= clusters <= len(vectors):
        raise ConfigError(
            f"{len(vectors):,} images of {vectors.name} cannot make {clusters:,} clusters",
            hint=f"ask for {len(vectors):,} or fewer",
        )
    rng = np.random.default_rng(seed)
    size = min(len(vectors), clusters * sample_per_cluster)
    rows = np.sort(rng.choice(len(vectors), size, replace=False)) if size < len(vectors) else np.arange(size)
    sample_BD = vectors.take(rows).all_unit()
    centres_KD = _spread_out(sample_BD, clusters, rng)
    before: Tensor | None = None
    for _ in range(iterations):
        codes, similarity = _assign_block(sample_BD, centres_KD)
        if before is not None and torch.equal(codes, before):
            break
        before = codes
        centres_KD = _means(sample_BD, codes, similarity, clusters)
    return centres_KD


def assign(vectors: Vectors, centres_KD: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest centre of each vector, (n,) int64, and the cosine to it, (n,) float32."""
    codes, similarity = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    for first, block_BD in vectors.unit_blocks():
        found, cosine = _assign_block(block_BD, centres_KD)
        codes[first : first + len(found)], similarity[first : first + len(found)] = found.numpy(), cosine.numpy()
    return codes, similarity


def _assign_block(block_BD: Tensor, centres_KD: Tensor) -> tuple[Tensor, Tensor]:
    step = max(1, _SIMILARITIES // len(centres_KD))
    best = [(block_BD[first : first + step] @ centres_KD.T).max(dim=1) for first in range(0, len(block_BD), step)]
    return torch.cat([each.indices for each in best]), torch.cat([each.values for each in best])


def _spread_out(sample_BD: Tensor, clusters: int, rng: np.random.Generator) -> Tensor:
    """First centres by greedy k-means++ among some random vectors.

    For each centre a few vectors are drawn, with a probability that grows with the distance to the centres so far. The best of them is
    used. A single draw often puts two centres into one group, which no iteration corrects.

    Source: Arthur and Vassilvitskii 2007, "k-means++", Sec. 5; as many draws as scikit-learn.
    """
    candidates = rng.permutation(len(sample_BD))[: clusters * _SEEDING_SAMPLE]
    pool_BD = sample_BD[torch.from_numpy(candidates)]
    draws = 2 + int(math.log(clusters))
    chosen = [int(rng.integers(len(pool_BD)))]
    distance_B = (1 - pool_BD @ pool_BD[chosen[0]]).clamp(min=0)
    is_free = np.ones(len(pool_BD), bool)
    for _ in range(clusters - 1):
        is_free[chosen[-1]] = False
        weight = np.where(is_free, distance_B.numpy().astype(np.float64), 0.0)
        if weight.sum() <= 1e-9:  # only copies of the centres are left
            weight = is_free.astype(np.float64)
        drawn = rng.choice(len(pool_BD), draws, p=weight / weight.sum())
        left_TB = torch.minimum(distance_B, (1 - pool_BD[torch.from_numpy(drawn)] @ pool_BD.T).clamp(min=0))
        best = int(left_TB.sum(dim=1).argmin())
        chosen.append(int(drawn[best]))
        distance_B = left_TB[best]
    return pool_BD[chosen].clone()


def _means(sample_BD: Tensor, codes: Tensor, similarity: Tensor, clusters: int) -> Tensor:
    """New centres. A cluster without vectors starts again at one of the vectors that are farthest from their centre."""
    sums_KD = torch.zeros(clusters, sample_BD.shape[1]).index_add_(0, codes, sample_BD)
    empty = torch.bincount(codes, minlength=clusters) == 0
    if empty.any():
        sums_KD[empty] = sample_BD[similarity.argsort()[: int(empty.sum())]]
    return torch.nn.functional.normalize(sums_KD, dim=1)
