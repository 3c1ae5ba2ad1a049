"""Clusters of similar images, how they agree with labels, and training sets drawn evenly from a hierarchy of them.

Source: DINOv2 (arXiv 2304.07193) Sec. 3 and App. A, retrieval of images like a seed set, by sample and by cluster; hierarchical k-means
and balanced sampling after Vo et al. 2024 (arXiv 2405.15613).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dino_extract.analysis.vectors.compatible import require_made_alike
from dino_extract.analysis.vectors.kmeans import Clusters, assign, kmeans, largest_first
from dino_extract.analysis.vectors.neighbours import nearest
from dino_extract.analysis.vectors.stored import (
    StoreSource,
    Vectors,
    VectorSource,
    as_vectors,
    opened,
    require_same_dim,
    stored_vectors,
)
from dino_extract.errors import ConfigError
from dino_extract.options import as_list, checked

Like = Literal["sample", "cluster"]
MIN_SEEDS = 4  # "more than 3" seeds have to lie in a cluster for its images to be taken, as for LVD-142M


@dataclass(frozen=True)
class Agreement:
    """How clusters agree with labels.

    Args:
        purity: share of images that have the commonest label of their cluster.
        nmi: normalised mutual information, arithmetic mean of the entropies, 0..1.
    """

    purity: float
    nmi: float


def cluster(
    store: StoreSource, num_clusters: int, *, coarser: int | Sequence[int] = (), dataset: str = "features", seed: int = 0
) -> list[Clusters]:
    """Divide the images of a store into clusters, and those into fewer and fewer: one division of the images for each level.

    Args:
        store: store, or path of one.
        num_clusters: clusters of the finest level, which comes first.
        coarser: clusters of the levels above, falling.
        dataset: vectors to compare.
        seed: of the first centres.

    Raises:
        StoreError: an unfinished or empty store.
        ConfigError: fewer images than clusters, or levels that do not fall.
    """
    with opened(store) as found:
        return hierarchy(stored_vectors(found, dataset), [num_clusters, *as_list(coarser)], seed=seed)


def hierarchy(vectors: VectorSource, sizes: Sequence[int], *, seed: int = 0) -> list[Clusters]:
    """k-means on the vectors, then on the centres, and so on: a division of the vectors for each size, the finest first.

    Args:
        vectors: (n, D).
        sizes: clusters of each level, falling.
        seed: of the first centres.

    Raises:
        ConfigError: fewer vectors than clusters, or sizes that do not fall.
    """
    if not sizes or any(below <= above for below, above in itertools.pairwise(sizes)) or sizes[-1] < 1:
        raise ConfigError(
            f"numbers of clusters must be at least 1 and fall from level to level, got {', '.join(map(str, sizes))}",
            hint="for example 1000,100,10",
        )
    vectors = as_vectors(vectors)
    levels = [kmeans(vectors, sizes[0], seed=seed)]
    for size in sizes[1:]:
        below = levels[-1]
        above = kmeans(below.centres, size, seed=seed)
        order, codes = largest_first(above.codes[below.codes], size)  # by images now, not by clusters below
        centres = above.centres[order]
        levels.append(Clusters(centres, codes, _similarity(vectors, centres, codes)))
    return levels


def _similarity(vectors: Vectors, centres_KD: NDArray[np.float32], codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n,) float32 cosine of each vector to the centre of its cluster."""
    found = np.empty(len(vectors), np.float32)
    for first, block_BD in vectors.unit_blocks():
        rows = slice(first, first + len(block_BD))
        found[rows] = np.einsum("bd,bd->b", block_BD.numpy(), centres_KD[codes[rows]])
    return found


def agreement(clusters: NDArray[np.int64], codes: NDArray[np.int64]) -> Agreement:
    """Purity and normalised mutual information of two divisions.

    Args:
        clusters: (n,) cluster of each image.
        codes: (n,) class of each image, -1 for none: left out.

    Raises:
        ConfigError: no image has a class.
    """
    clusters, codes = clusters[codes >= 0], codes[codes >= 0]
    if len(codes) == 0:
        raise ConfigError("purity cannot be measured: no image has a label")
    counts = np.zeros((clusters.max() + 1, codes.max() + 1))
    np.add.at(counts, (clusters, codes), 1.0)
    joint = counts / len(codes)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    filled = joint > 0
    information = float((joint[filled] * np.log(joint[filled] / np.outer(rows, columns)[filled])).sum())
    mean_entropy = (_entropy(rows) + _entropy(columns)) / 2
    return Agreement(float(joint.max(axis=1).sum()), max(information, 0.0) / mean_entropy if mean_entropy > 0 else 1.0)


def _entropy(shares: NDArray[np.float64]) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def curate(
    store: StoreSource,
    budget: int,
    *,
    levels: int | Sequence[int] = (),
    like: StoreSource | None = None,
    by: Like = "sample",
    dataset: str = "features",
    seed: int = 0,
) -> list[str]:
    """Paths of a training set of `budget` images, sorted: evenly over the hierarchy of clusters, or similar to a seed set.

    Args:
        store: store, or path of one.
        budget: images wanted.
        levels: clusters of each level, falling; by default about two times the root of the images, and the root of that.
        like: seed images, made alike.
        by: with `like`: `sample` takes the nearest neighbour of every seed, then the second nearest, and so on; `cluster` takes
            images evenly from all clusters with more than 3 seeds in them.
        dataset: vectors to compare.
        seed: of everything drawn at random.

    Raises:
        StoreError: unfinished, or made differently.
        ConfigError: a budget above the number of images, or no cluster with enough seeds.
    """
    checked("by", Like, by)
    if like is None and by != "sample":
        raise ConfigError("`--by` says how images like those of `--like` are found, which is not given", hint="`--like SEEDS.h5`")
    sizes = as_list(levels)
    if like is not None and len(sizes) > (by == "cluster"):
        raise ConfigError(
            "`--levels` are for an even choice: `--like` takes none, and with `--by cluster` one number of clusters",
            hint="leave `--levels` or `--like` out",
        )
    with opened(store) as found:
        vectors = stored_vectors(found, dataset)
        if not 1 <= budget <= len(vectors):
            raise ConfigError(
                f"`--budget` must be from 1 to the {len(vectors):,} images of `{found.path}`, got {budget:,}",
                hint=f"for example `--budget {max(1, len(vectors) // 2)}`",
            )
        sizes = sizes or default_levels(len(vectors))
        if like is None:
            rows = balanced_sample([level.codes for level in hierarchy(vectors, sizes, seed=seed)], budget, seed=seed)
        else:
            with opened(like) as seeds:
                require_made_alike(found, seeds)
                wanted = stored_vectors(seeds, dataset)
                require_same_dim(wanted, vectors)
                if by == "sample":
                    rows = nearest_in_turn(wanted, vectors, budget)
                else:
                    rows = _from_seeded_clusters(vectors, wanted, sizes[0], budget, seed)
        paths = found.paths
        return sorted(paths[row] for row in rows.tolist())


def default_levels(num_images: int) -> list[int]:
    """About two times the root of the number of images, and the root of that: 10,000 images give 200 and 14 clusters."""
    fine = max(1, min(num_images, round(2 * math.sqrt(num_images))))
    coarse = round(math.sqrt(fine))
    return [fine, coarse] if 1 < coarse < fine else [fine]


def balanced_sample(levels: Sequence[NDArray[np.int64]], budget: int, *, seed: int = 0) -> NDArray[np.int64]:
    """(budget,) rows, ascending: the budget is shared evenly among the coarsest clusters, within each among the next finer ones, ...

    A cluster with fewer images than its share gives all, and the rest is shared by the others; within the finest, chance decides.

    Args:
        levels: for each level the cluster of each image, (n,) int64, the finest first.
        budget: rows wanted, at most n.
        seed: of the chance.
    """
    rng = np.random.default_rng(seed)
    return np.sort(_draw(np.arange(len(levels[0])), list(levels), budget, rng))


def _draw(rows: NDArray[np.int64], levels: list[NDArray[np.int64]], budget: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if not levels or budget == len(rows):
        return rng.permutation(rows)[:budget]
    codes = levels[-1][rows]
    order = np.argsort(codes, kind="stable")
    parts = np.split(rows[order], np.flatnonzero(np.diff(codes[order])) + 1)
    shares = even_shares(np.array([len(part) for part in parts]), budget, rng)
    return np.concatenate([_draw(part, levels[:-1], int(share), rng) for part, share in zip(parts, shares, strict=True) if share])


def even_shares(sizes: NDArray[np.int64], budget: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """What each cluster gives: as equal as its size allows, `budget` in all; who gives one more is drawn.

    `even_shares([1, 10, 10], 9)` is `[1, 4, 4]`.
    """
    shares = np.zeros(len(sizes), np.int64)
    left = min(budget, int(sizes.sum()))
    while left:
        open_ = np.flatnonzero(shares < sizes)
        if left < len(open_):
            shares[rng.permutation(open_)[:left]] += 1
            break
        more = np.minimum(sizes[open_] - shares[open_], left // len(open_))
        shares[open_] += more
        left -= int(more.sum())
    return shares


def nearest_in_turn(seeds: VectorSource, bank: VectorSource, budget: int) -> NDArray[np.int64]:
    """Rows of the bank: the nearest of every seed, then the second nearest of every seed, ... until there are `budget` different ones.

    Within one turn the more similar ones come first.
    """
    seeds, bank = as_vectors(seeds, "the seeds"), as_vectors(bank)
    k = min(len(bank), max(4, 2 * math.ceil(budget / len(seeds))))
    while True:
        similarity, index = nearest(seeds, bank, k)
        turn = np.broadcast_to(np.arange(index.shape[1]), index.shape)
        order = np.lexsort((-similarity.ravel(), turn.ravel()))
        rows = index.ravel()[order]
        first = np.sort(np.unique(rows, return_index=True)[1])
        if len(first) >= budget or k == len(bank):
            return rows[first[:budget]]
        k = min(len(bank), 2 * k)


def _from_seeded_clusters(vectors: VectorSource, seeds: VectorSource, num_clusters: int, budget: int, seed: int) -> NDArray[np.int64]:
    found = kmeans(vectors, num_clusters, seed=seed)
    seed_codes, _ = assign(as_vectors(seeds), torch.from_numpy(found.centres))
    wanted = np.flatnonzero(np.bincount(seed_codes, minlength=num_clusters) >= MIN_SEEDS)
    if len(wanted) == 0:
        raise ConfigError(
            f"no cluster has {MIN_SEEDS} of the {len(seed_codes):,} seeds or more", hint="fewer clusters with `--levels`, or `--by sample`"
        )
    rows = np.flatnonzero(np.isin(found.codes, wanted))
    return rows if len(rows) <= budget else rows[balanced_sample([found.codes[rows]], budget, seed=seed)]
