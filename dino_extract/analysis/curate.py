"""Training sets: images drawn evenly from a hierarchy of clusters, or images similar to a seed set.

Source: DINOv2 (arXiv 2304.07193) Sec. 3 and App. A, retrieval of images like a seed set, by sample and by cluster. Balanced sampling from
hierarchical k-means after Vo et al. 2024 (arXiv 2405.15613).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dino_extract.analysis.cluster import hierarchy
from dino_extract.analysis.vectors.kmeans import assign, kmeans
from dino_extract.analysis.vectors.neighbours import nearest
from dino_extract.analysis.vectors.stored import (
    OpenVectors,
    StoreSource,
    VectorSource,
    as_vectors,
    open_vectors,
)
from dino_extract.errors import ConfigError
from dino_extract.options import as_list, checked
from dino_extract.results import Result

Like = Literal["sample", "cluster"]
MIN_SEEDS = 4  # a cluster needs "more than 3" seeds for its images to be chosen, as for LVD-142M


@dataclass(frozen=True)
class Curated(Result):
    """A training set: the chosen paths, which can be iterated.

    Args:
        paths: sorted. There are fewer than asked for where too few images are in clusters with enough seeds.
        images: number of images to choose from.
    """

    paths: tuple[str, ...]
    images: int

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def summary(self) -> str:
        """Number of images chosen, and of all."""
        return f"{len(self):,} of {self.images:,} images"

    def table(self) -> list[dict[str, Any]]:
        """A row for each image."""
        return [{"path": path} for path in self.paths]


def curate(
    store: StoreSource,
    images: int,
    *,
    levels: int | Sequence[int] = (),
    like: StoreSource | None = None,
    by: Like = "sample",
    dataset: str = "features",
    seed: int = 0,
) -> Curated:
    """Choose images for a training set, evenly over the hierarchy of clusters, or similar to a seed set.

    Args:
        store: store, or path of one.
        images: number of images to choose.
        levels: number of clusters on each level, in falling order. By default about two times the root of the number of images, and the
            root of that.
        like: a compatible store of seed images.
        by: with `like`: `sample` takes the nearest neighbour of every seed, then the second nearest, and so on. `cluster` takes
            images evenly from all clusters with more than 3 seeds in them.
        dataset: vectors to compare.
        seed: seed of everything drawn at random.

    Raises:
        StoreError: a store is unfinished, or the two are not compatible.
        ConfigError: more images are asked for than there are, or no cluster has enough seeds.
    """
    checked("by", Like, by)
    sizes = as_list(levels)
    if like is None and by != "sample":
        raise ConfigError("`by` needs `like`, which is not given", hint="`--like SEEDS.h5`")
    if like is not None and len(sizes) > (by == "cluster"):
        raise ConfigError(
            "`levels` are for an even choice: `like` takes no levels, and with `by=cluster` one number of clusters",
            hint="leave `levels` or `like` out",
        )
    with open_vectors(store, dataset) as found:
        vectors = found.vectors
        if not 1 <= images <= len(vectors):
            raise ConfigError(
                f"`images` must be from 1 to the {len(vectors):,} images of {vectors.name}, got {images:,}",
                hint=f"for example {max(1, len(vectors) // 2)}",
            )
        sizes = sizes or default_levels(len(vectors))
        if like is None:
            rows = balanced_sample([level.codes for level in hierarchy(vectors, sizes, seed=seed)], images, seed=seed)
        else:
            rows = _rows_like(like, found, dataset, by, sizes[0], images, seed)
        paths = found.store.paths
        return Curated(tuple(sorted(paths[row] for row in rows.tolist())), len(vectors))


def _rows_like(like: StoreSource, found: OpenVectors, dataset: str, by: Like, clusters: int, images: int, seed: int) -> NDArray[np.int64]:
    with open_vectors(like, dataset, like=found) as seeds:
        if by == "sample":
            return nearest_in_turn(seeds.vectors, found.vectors, images)
        return _from_seeded_clusters(found.vectors, seeds.vectors, clusters, images, seed)


def default_levels(images: int) -> list[int]:
    """Numbers of clusters by default: about two times the root of the number of images, and the root of that.

    `default_levels(10_000)` is `[200, 14]`.
    """
    fine = max(1, min(images, round(2 * math.sqrt(images))))
    coarse = round(math.sqrt(fine))
    return [fine, coarse] if 1 < coarse < fine else [fine]


def balanced_sample(levels: Sequence[NDArray[np.int64]], budget: int, *, seed: int = 0) -> NDArray[np.int64]:
    """(budget,) rows, ascending. The coarsest clusters share the budget evenly, then the next finer ones within each, and so on.

    A cluster with fewer images than its share gives all of them, and the others share the rest. The finest clusters draw at random.

    Args:
        levels: for each level the cluster of each image, (n,) int64, the finest first.
        budget: number of rows wanted, at most n.
        seed: seed of the draws.
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
    """The number of images from each cluster: as equal as the sizes allow, `budget` in all.

    A draw decides which clusters give one more.

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
    """Rows of the bank: the nearest of every seed, then the second nearest of every seed, until there are `budget` different rows.

    Within one turn the more similar rows come first.
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


def _from_seeded_clusters(vectors: VectorSource, seeds: VectorSource, clusters: int, budget: int, seed: int) -> NDArray[np.int64]:
    found = kmeans(vectors, clusters, seed=seed)
    seed_codes, _ = assign(as_vectors(seeds), torch.from_numpy(found.centres))
    wanted = np.flatnonzero(np.bincount(seed_codes, minlength=clusters) >= MIN_SEEDS)
    if len(wanted) == 0:
        raise ConfigError(
            f"no cluster has {MIN_SEEDS} or more of the {len(seed_codes):,} seeds",
            hint="ask for fewer clusters with `levels`, or use `by=sample`",
        )
    rows = np.flatnonzero(np.isin(found.codes, wanted))
    return rows if len(rows) <= budget else rows[balanced_sample([found.codes[rows]], budget, seed=seed)]
