"""Clusters of similar images, clusters of clusters, and how they agree with labels.

Source: hierarchical k-means after Vo et al. 2024 (arXiv 2405.15613).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.vectors.kmeans import Clusters, kmeans, largest_first
from dino_extract.analysis.vectors.labels import LabelSource, encode, folder_labels, labels_of
from dino_extract.analysis.vectors.stored import StoreSource, Vectors, VectorSource, as_vectors, open_vectors, opened
from dino_extract.errors import ConfigError
from dino_extract.options import as_list
from dino_extract.results import Result


@dataclass(frozen=True)
class Agreement:
    """How well clusters agree with labels.

    Args:
        purity: share of the images that have the most common label of their cluster.
        nmi: normalised mutual information, by the arithmetic mean of the entropies, 0..1.
    """

    purity: float
    nmi: float


@dataclass(frozen=True, eq=False)
class Clustering(Result, Sequence[Clusters]):
    """Clusters of the images of a store: a sequence of levels, the finest first.

    Args:
        paths: (n,) path of each image.
        levels: one division of the images for each level.
    """

    paths: Sequence[str]
    levels: tuple[Clusters, ...]

    @overload
    def __getitem__(self, index: int) -> Clusters: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Clusters]: ...
    def __getitem__(self, index: int | slice) -> Clusters | Sequence[Clusters]:
        return self.levels[index]

    def __len__(self) -> int:
        return len(self.levels)

    def summary(self) -> str:
        """Number of images, and of clusters on each level."""
        return f"{len(self.paths):,} images in {', '.join(f'{len(level.centres):,}' for level in self.levels)} clusters"

    def columns(self) -> dict[str, list[Any]]:
        """A column of values for each level, and the cosine of each image to the centre of its finest cluster."""
        codes = {f"cluster{len(level.centres)}": level.codes.tolist() for level in self.levels}
        return {**codes, "similarity": self.levels[0].similarity.tolist()}

    def table(self) -> list[dict[str, Any]]:
        """A row for each image."""
        columns = {"path": self.paths, **self.columns()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def cluster(
    store: StoreSource,
    clusters: int | None = None,
    *,
    coarser: int | Sequence[int] = (),
    dataset: str = "features",
    seed: int = 0,
) -> Clustering:
    """Divide the images of a store into clusters of similar images, and these into fewer and fewer.

    Args:
        store: store, or path of one.
        clusters: number of clusters on the finest level. By default about the root of half the number of images, from 2 to 30.
        coarser: number of clusters on each level above, in falling order.
        dataset: vectors to compare.
        seed: seed of the first centres.

    Raises:
        StoreError: the store is unfinished or empty.
        ConfigError: there are fewer images than clusters, or the numbers do not fall.
    """
    with open_vectors(store, dataset) as (found, vectors):
        finest = default_clusters(len(vectors)) if clusters is None else clusters
        return Clustering(found.paths, tuple(hierarchy(vectors, [finest, *as_list(coarser)], seed=seed)))


def default_clusters(images: int) -> int:
    """The number of clusters where none is asked for: about the root of half the number of images, from 2 to 30."""
    return min(images, 30, max(2, round((images / 2) ** 0.5)))


def hierarchy(vectors: VectorSource, sizes: Sequence[int], *, seed: int = 0) -> list[Clusters]:
    """k-means on the vectors, then on the centres, and so on: one division of the vectors for each size, the finest first.

    Args:
        vectors: (n, D).
        sizes: number of clusters on each level, in falling order.
        seed: seed of the first centres.

    Raises:
        ConfigError: there are fewer vectors than clusters, or the sizes do not fall.
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
        order, codes = largest_first(above.codes[below.codes], size)  # by number of images, not of clusters below
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
    """Purity and normalised mutual information of clusters and labels.

    Args:
        clusters: (n,) cluster of each image.
        codes: (n,) class of each image. Images with -1 have no class and are left out.

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


def agreements(clustering: Clustering, store: StoreSource, *, labels: LabelSource = None, label_depth: int = 1) -> list[Agreement | None]:
    """How well each level of clusters agrees with labels, or None where the folders of the images do not differ.

    Args:
        clustering: clusters of the images of the store.
        store: store, or path of one.
        labels: as for `knn`; None for the names of the folders.
        label_depth: with the names of the folders, how many folders above the image: 1 is the folder it is in.

    Raises:
        SourceError: the labels cannot be read.
        ConfigError: no image has a label.
    """
    with opened(store) as found:
        names = folder_labels(found.paths, label_depth) if labels is None else labels_of(found, labels, label_depth)
    classes = sorted(set(names) - {""})
    if len(classes) < 2:
        return [None] * len(clustering)
    codes = encode(names, classes)
    return [agreement(level.codes, codes) for level in clustering]
