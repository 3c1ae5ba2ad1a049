"""Near-duplicates: groups of images with nearly the same vectors, and images of one file that another file has too.

Source: DINOv2 (arXiv 2304.07193) App. A, deduplication of LVD-142M: a neighbour graph above a similarity, its connected components by
a disjoint set, and relative deduplication against test sets. There one image of each component is kept. Here every dropped image
resembles a kept one (`representatives`), which may keep more. The thresholds of the paper (0.6 and 0.45) belong to its copy-detection
network. With DINOv2 embeddings, unrelated images are often that similar (docs/dedup.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.vectors.compatible import require_other_file
from dino_extract.analysis.vectors.near_pairs import near_pairs, near_pairs_between
from dino_extract.analysis.vectors.neighbours import nearest
from dino_extract.analysis.vectors.representatives import representatives
from dino_extract.analysis.vectors.stored import (
    StoreSource,
    Vectors,
    VectorSource,
    as_vectors,
    least_cosine,
    open_vectors,
    rows_where,
    unit,
)
from dino_extract.errors import ConfigError
from dino_extract.results import Result, shown

THRESHOLD = 0.95
LADDER = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)  # thresholds that are counted in the same pass
CALIBRATED = (0.7, 0.8, *LADDER)  # thresholds that are measured on altered copies


@dataclass(frozen=True)
class Kept(Result):
    """An image to keep, and the images that can be dropped because they are nearly the same.

    Args:
        path: the image.
        drop: paths of the images that can be dropped; empty where another kept image resembles them more directly.
        similarity: cosine of each of them to the kept image, at least the threshold except for rounding.
    """

    path: str
    drop: tuple[str, ...]
    similarity: tuple[float, ...]

    def summary(self) -> str:
        """The path, and the number of images to drop."""
        return f"{shown(self.path)}, {len(self.drop):,} to drop"

    def table(self) -> list[dict[str, Any]]:
        """A row for each image to drop."""
        pairs = zip(self.drop, self.similarity, strict=True)
        return [{"keep": self.path, "drop": path, "similarity": similarity} for path, similarity in pairs]


@dataclass(frozen=True)
class DuplicateGroup(Result):
    """Images that belong together: each is nearly the same as at least one other image of the group.

    Args:
        kept: images to keep, the one with the most pixels first, then by path. No two of them are nearly the same. There are several
            only where the group is a chain.
    """

    kept: tuple[Kept, ...]

    @property
    def drop(self) -> list[str]:
        """Paths of the images to drop, sorted."""
        return sorted(path for each in self.kept for path in each.drop)

    def in_order(self) -> list[tuple[str, float | None]]:
        """Path and similarity of all images: each kept one, without a similarity, before the images to drop that resemble it."""
        return [image for each in self.kept for image in [(each.path, None), *zip(each.drop, each.similarity, strict=True)]]

    def __len__(self) -> int:
        """Number of images, kept and dropped."""
        return sum(1 + len(each.drop) for each in self.kept)

    def summary(self) -> str:
        """Number of images, and the first one that is kept."""
        return f"{len(self):,} images, keep {shown(self.kept[0].path)}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each image to drop."""
        return [row for each in self.kept for row in each.table()]


@dataclass(frozen=True)
class Step:
    """The effect of a threshold: the number of groups with images to drop, and of images that would be dropped."""

    threshold: float
    groups: int
    dropped: int


@dataclass(frozen=True)
class DedupResult(Result):
    """Near-duplicates of one store.

    Args:
        images: number of images compared.
        threshold: cosine from which two images count as the same.
        groups: groups with images to drop, the largest first.
        ladder: the effect of the threshold and of stricter ones.
    """

    images: int
    threshold: float
    groups: tuple[DuplicateGroup, ...]
    ladder: tuple[Step, ...]
    json_with = ("drop",)

    @property
    def drop(self) -> list[str]:
        """Paths of the images to drop, sorted."""
        return sorted(path for group in self.groups for path in group.drop)

    def summary(self) -> str:
        """Number of images, of groups and of images to drop."""
        return f"{self.images:,} images, {len(self.groups):,} groups, {len(self.drop):,} to drop at {self.threshold:g}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each image to drop, with the number of its group."""
        return [{"group": number, **row} for number, group in enumerate(self.groups) for row in group.table()]


@dataclass(frozen=True)
class Leak:
    """An image that another store has too: its path, the most similar path there, and their cosine."""

    path: str
    other: str
    similarity: float


def dedup(
    store: StoreSource, *, threshold: float = THRESHOLD, dataset: str = "features", exact: bool | None = None, seed: int = 0
) -> DedupResult:
    """Groups of near-duplicates within a store.

    Args:
        store: store, or path of one.
        threshold: cosine from which two images count as the same, 0..1.
        dataset: vectors to compare.
        exact: compare all pairs. By default up to 63,000 images; of more, only pairs in neighbouring k-means buckets.
        seed: seed of the buckets.

    Raises:
        StoreError: the store is unfinished or empty.
        ConfigError: the threshold is outside 0..1.
    """
    with open_vectors(store, dataset) as (found, vectors):
        pixels = found.image_size.astype(np.int64).prod(axis=1)
        groups, ladder = group_rows(vectors, threshold, worth=pixels, exact=exact, seed=seed)
        paths = found.paths
        return DedupResult(len(vectors), threshold, tuple(_named(group, paths) for group in groups), tuple(ladder))


def _named(group: RowGroup, paths: Sequence[str]) -> DuplicateGroup:
    drops: dict[int, list[tuple[str, float]]] = {row: [] for row in group.rows[group.rows == group.keep].tolist()}
    for row, keep, similarity in sorted(zip(group.rows.tolist(), group.keep.tolist(), group.similarity.tolist(), strict=True)):
        if row != keep:
            drops[keep].append((paths[row], similarity))
    return DuplicateGroup(
        tuple(Kept(paths[row], tuple(path for path, _ in drop), tuple(cosine for _, cosine in drop)) for row, drop in drops.items())
    )


def leaks(
    store: StoreSource,
    against: StoreSource,
    *,
    threshold: float = THRESHOLD,
    dataset: str = "features",
    exact: bool | None = None,
    seed: int = 0,
) -> list[Leak]:
    """Images of `store` that `against` has too, the most similar first: test images in a training set, for example.

    Args:
        store: images that may have to be dropped.
        against: compatible store of the images that they must not repeat.
        threshold: as in `dedup`.
        dataset: as in `dedup`.
        exact: as in `dedup`.
        seed: as in `dedup`.

    Raises:
        StoreError: a store is unfinished or empty, or the two are not compatible.
        ConfigError: the threshold is outside 0..1, or both are one file.
    """
    require_threshold(threshold)
    with open_vectors(store, dataset) as ours, open_vectors(against, dataset, like=ours) as theirs:
        require_other_file(ours.store, theirs.store)
        queries, bank = ours.vectors, theirs.vectors
        best, other = np.full(len(queries), -np.inf, np.float32), np.full(len(queries), -1, np.int64)
        for query, row, cosine in near_pairs_between(queries, bank, threshold, exact=exact, seed=seed):
            order = np.lexsort((row, -cosine, query))
            first = order[np.unique(query[order], return_index=True)[1]]  # the best pair of each query
            first = first[cosine[first] > best[query[first]]]
            best[query[first]], other[query[first]] = cosine[first], row[first]
        our_paths, their_paths = ours.store.paths, theirs.store.paths
        rows = rows_where(other >= 0)
        rows = rows[np.argsort(-best[rows], kind="stable")]
        return [Leak(our_paths[row], their_paths[other[row]], float(best[row])) for row in rows.tolist()]


class RowGroup(NamedTuple):
    """Rows that belong together, the row with the most worth first.

    Args:
        rows: (m,) int64.
        keep: (m,) int64 the kept row that is nearly the same as each: itself, or an earlier one.
        similarity: (m,) float32 cosine to the kept row, at least the threshold except for rounding.
    """

    rows: NDArray[np.int64]
    keep: NDArray[np.int64]
    similarity: NDArray[np.float32]


def group_rows(
    vectors: VectorSource,
    threshold: float = THRESHOLD,
    *,
    worth: NDArray[np.int64] | None = None,
    exact: bool | None = None,
    seed: int = 0,
) -> tuple[list[RowGroup], list[Step]]:
    """Groups of near-duplicates and the rows to keep of each, the largest group first, and the effect of stricter thresholds.

    A group is a connected component of the pairs within the threshold. The row with the most worth is kept and its direct neighbours are
    dropped. This repeats with the remaining rows.

    Args:
        vectors: (n, D).
        threshold: cosine from which two vectors are the same.
        worth: (n,) rows of higher worth are kept first, of equal worth the first row. By default all are equal.
        exact: as in `dedup`.
        seed: as in `dedup`.

    Raises:
        ConfigError: the threshold is outside 0..1.
    """
    require_threshold(threshold)
    vectors = as_vectors(vectors)
    steps = [threshold, *(step for step in LADDER if step > threshold)]
    sets = _joined(vectors, steps, exact, seed)
    components = [_best_first(rows, worth) for rows in sets[0].groups()]
    if not components:
        return [], [Step(step, 0, 0) for step in steps]
    rows = np.concatenate(components)
    number = np.repeat(np.arange(len(components)), [len(each) for each in components])
    kept_place, similarity = representatives(vectors.take(rows), number, steps)
    ladder = []
    for step, disjoint, places in zip(steps, sets, kept_place, strict=True):
        is_dropped = places != np.arange(len(rows))
        disjoint.join(rows, rows[places])  # buckets may have missed the pair
        ladder.append(Step(step, len(np.unique(disjoint.roots(rows[is_dropped]))), int(is_dropped.sum())))
    cuts = np.flatnonzero(np.diff(number)) + 1
    parts = [np.split(each, cuts) for each in (rows, rows[kept_place[0]], similarity[0])]
    groups = [RowGroup(*each) for each in zip(*parts, strict=True)]
    # Cosines of single pairs differ in the last digits from those of buckets, so a pair may lose its link.
    return [group for group in groups if (group.rows != group.keep).any()], ladder


def _joined(vectors: Vectors, steps: Sequence[float], exact: bool | None, seed: int) -> list[DisjointSet]:
    """For each threshold, ascending, the sets of rows that pairs within it join."""
    sets = [DisjointSet(len(vectors)) for _ in steps]
    for one, other, cosine in near_pairs(vectors, steps[0], exact=exact, seed=seed):
        for step, disjoint in zip(reversed(steps), reversed(sets), strict=True):
            # Rows that are joined at a threshold are joined at every lower one. Where thousands of images are the same, this skips most.
            is_news = disjoint.roots(one) != disjoint.roots(other)
            one, other, cosine = one[is_news], other[is_news], cosine[is_news]
            is_same = cosine >= least_cosine(step)
            disjoint.join(one[is_same], other[is_same])
    return sets


def _best_first(rows: NDArray[np.int64], worth: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return rows if worth is None else rows[np.lexsort((rows, -worth[rows]))]


def require_threshold(threshold: float) -> None:
    """Check that a threshold is a cosine above 0.

    Raises:
        ConfigError: it is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"`threshold` must be a cosine above 0 and at most 1, got {threshold}")


class DisjointSet:
    """Union-find over rows, many pairs at a time."""

    def __init__(self, num_rows: int) -> None:
        self._parent = np.arange(num_rows)

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Put the rows of every pair into the same set."""
        while len(one):
            one, other = self.roots(one), self.roots(other)
            is_apart = one != other
            one, other = np.minimum(one, other)[is_apart], np.maximum(one, other)[is_apart]
            np.minimum.at(self._parent, other, one)  # each root points to a smaller one, so there is no loop

    def groups(self) -> list[NDArray[np.int64]]:
        """Sets of two or more rows, each ascending, the largest first, then by first row."""
        roots = self.roots(np.arange(len(self._parent)))
        order = np.argsort(roots, kind="stable")
        cuts = np.flatnonzero(np.diff(roots[order])) + 1
        found = [rows for rows in np.split(order, cuts) if len(rows) > 1]
        return sorted(found, key=lambda rows: (-len(rows), int(rows[0])))

    def roots(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The smallest row of the set of each row, which names the set."""
        roots = rows
        while ((higher := self._parent[roots]) != roots).any():
            roots = higher
        self._parent[rows] = roots
        return roots


@dataclass(frozen=True)
class Calibration:
    """The copies and the other images that a threshold finds.

    Args:
        threshold: cosine.
        recall: share of the altered copies that are found, 0..1, by kind of change.
        others: share of the images that count as the same as another image of the file, 0..1: real duplicates, or mistakes.
    """

    threshold: float
    recall: dict[str, float]
    others: float


def calibrate(
    vectors: VectorSource,
    rows: NDArray[np.int64],
    copies: Mapping[str, NDArray[np.float32]],
    thresholds: Sequence[float] = CALIBRATED,
) -> list[Calibration]:
    """Measure how many altered copies of some images each threshold finds, and how many other images.

    Args:
        vectors: (n, D) of all images of the file.
        rows: (S,) rows of the images that were altered.
        copies: for each kind of change, (S, D) vectors of the altered images.
        thresholds: cosines to measure.

    Raises:
        ConfigError: there is a single image.
    """
    bank = as_vectors(vectors)
    if len(bank) < 2:
        raise ConfigError(f"`calibrate` compares images with other images, {bank.name} has {len(bank)}")
    originals = bank.take(rows)
    similarity, index = nearest(originals, bank, 2)
    other = np.where(index[:, 0] == rows, similarity[:, 1], similarity[:, 0])
    unit_SD = originals.all_unit()
    made = {kind: (unit_SD * unit(np.asarray(block, np.float32))).sum(dim=1).numpy() for kind, block in copies.items()}
    return [
        Calibration(each, {kind: float((cosine >= least).mean()) for kind, cosine in made.items()}, float((other >= least).mean()))
        for each, least in ((threshold, least_cosine(threshold)) for threshold in thresholds)
    ]
