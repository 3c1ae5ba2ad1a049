"""Unusual images: how far each image is from its nearest neighbours, in its own file or in another one.

Dimension key: `n` images, `m` reference images that they are compared with, `k` neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.tables import table_path
from dino_extract.analysis.vectors.compatible import require_other_file
from dino_extract.analysis.vectors.neighbours import nearest, nearest_blocks
from dino_extract.analysis.vectors.stored import StoreSource, Vectors, open_vectors
from dino_extract.errors import ConfigError
from dino_extract.options import Limits, checked
from dino_extract.results import Result, plain, shown

NEIGHBOURS = 5
RARE = 0.99  # percentile rank from which an image counts as rare
MAX_COMPARED = 100_000  # more reference images change little, and the time grows with their number


class Outlier(NamedTuple):
    """One image of `Outliers`."""

    path: str
    isolation: float
    unusual: float
    nearest: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Outliers(Result):
    """All images of a file, the most isolated first.

    Args:
        paths: (n,) all embedded images of the file.
        isolation: (n,) float32, 0..2: 1 minus the mean cosine with the k nearest other images.
        unusual: (n,) float32, 0..1: percentile rank: 0.99 means more isolated than 99 % of the reference images.
        nearest: (n,) path of the most similar reference image.
        similarity: (n,) float32, -1..1, its cosine.
        num_compared: m, the number of reference images.
    """

    paths: Sequence[str]
    isolation: NDArray[np.float32]
    unusual: NDArray[np.float32]
    nearest: Sequence[str]
    similarity: NDArray[np.float32]
    num_compared: int

    def __len__(self) -> int:
        return len(self.paths)

    def first(self, count: int) -> list[Outlier]:
        """The `count` most isolated images, or all where there are fewer."""
        columns = (self.paths, self.isolation.tolist(), self.unusual.tolist(), self.nearest, self.similarity.tolist())
        return [Outlier(*line) for line in zip(*(column[:count] for column in columns), strict=True)]

    @property
    def num_rare(self) -> int:
        """Number of images that are more isolated than 99 % of the reference images."""
        return int((self.unusual >= RARE).sum())

    def summary(self) -> str:
        """Number of images, of rare ones, and the most isolated image."""
        return f"{len(self):,} images, {self.num_rare:,} rare, most isolated {shown(self.paths[0])}"

    def columns(self) -> dict[str, list[Any]]:
        """A column of values of all images for each field but the path."""
        values = {name: getattr(self, name).tolist() for name in ("isolation", "unusual", "similarity")}
        return {**values, "nearest": [table_path(path) for path in self.nearest]}

    def table(self) -> list[dict[str, Any]]:
        """A row for each image."""
        return [line._asdict() for line in self.first(len(self))]

    def to_dict(self, top: int | None = None) -> dict[str, Any]:
        """Counts, and the first images: all of them without `top`."""
        first = self.first(len(self) if top is None else top)
        return plain({"images": len(self), "compared_with": self.num_compared, "rare": self.num_rare, "outliers": first})


def outliers(
    store: StoreSource,
    against: StoreSource | None = None,
    *,
    neighbours: int = NEIGHBOURS,
    dataset: str = "features",
    seed: int = 0,
) -> Outliers:
    """Sort the images of a file by their isolation: from each other, or with `against` from the images of another file.

    The isolation is the mean over several neighbours, because an outlier may have a copy of itself. The distance to neighbours among known
    images is also a strong test for images of another kind (Sun et al., arXiv 2204.06507).

    Args:
        store: images to judge: store, or path of one.
        against: compatible store of reference images. By default the images of `store` themselves.
        neighbours: k, fewer where there are fewer images.
        dataset: vectors to compare.
        seed: seed of the draw of 100,000 reference images, where there are more.

    Raises:
        DinoExtractError: a file is unfinished, the files are not compatible or the same, there are fewer than two reference images, or
            `neighbours` is below 1.
    """
    neighbours = checked("neighbours", int, neighbours, Limits(least=1))
    with open_vectors(store, dataset) as own:
        vectors = own.vectors
        if against is None:
            usual_paths, rows = own.store.paths, _sample(vectors, seed)
            similarity, index = _nearest_others(vectors, rows, neighbours)
            isolation = isolation_of(similarity)
            usual_isolation = isolation[rows]
        else:
            with open_vectors(against, dataset, like=own) as other:
                require_other_file(own.store, other.store)
                usual_paths, rows = other.store.paths, _sample(other.vectors, seed)
                bank = other.vectors.take(rows)
                similarity, index = nearest(vectors, bank, neighbours)
                isolation = isolation_of(similarity)
                usual_isolation = isolation_of(nearest(bank, bank, neighbours, leave_one_out=True)[0])
        unusual = np.searchsorted(np.sort(usual_isolation), isolation) / len(rows)
        order = np.argsort(-isolation, kind="stable")
        own_paths = own.store.paths
        return Outliers(
            paths=[own_paths[row] for row in order.tolist()],
            isolation=isolation[order],
            unusual=unusual[order].astype(np.float32),
            nearest=[usual_paths[row] for row in rows[index[order, 0]].tolist()],
            similarity=similarity[order, 0],
            num_compared=len(rows),
        )


def isolation_of(similarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) 1 minus the mean cosine with the neighbours, from (n, k) cosines."""
    isolation: NDArray[np.float32] = 1 - similarity.mean(axis=1)
    return isolation


def _sample(vectors: Vectors, seed: int) -> NDArray[np.int64]:
    """(m,) ascending rows of the reference images: all, or 100,000 drawn at random."""
    if len(vectors) < 2:
        raise ConfigError(
            f"{vectors.name} has {len(vectors)} image, which cannot be compared with another", hint="two images or more are needed"
        )
    if len(vectors) <= MAX_COMPARED:
        return np.arange(len(vectors))
    drawn = np.random.default_rng(seed).choice(len(vectors), MAX_COMPARED, replace=False)
    return np.sort(drawn).astype(np.int64)


def _nearest_others(vectors: Vectors, rows: NDArray[np.int64], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine (n, k) and position among `rows` (n, k) of the vectors nearest to each, best first. No vector is its own neighbour.

    Args:
        vectors: (n, D).
        rows: (m,) rows that may be neighbours.
        k: number of neighbours, fewer where there are fewer.
    """
    k, found = min(k, len(rows) - 1), []
    for first, similarity, index in nearest_blocks(vectors, vectors.take(rows), k + 1):
        is_other = rows[index] != np.arange(first, first + len(index))[:, None]
        is_other[is_other.all(axis=1), -1] = False  # not in the bank, or ranked after copies of itself: drop the last neighbour
        found.append((similarity[is_other].reshape(-1, k), index[is_other].reshape(-1, k)))
    return np.concatenate([similarity for similarity, _ in found]), np.concatenate([index for _, index in found])
