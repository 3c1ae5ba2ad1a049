"""Images like no other: how far each lies from its nearest neighbours, in its own file or in another one.

Dimension key: n images, m images they are compared with, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.vectors.compatible import require_made_alike, require_other_file
from dino_extract.analysis.vectors.neighbours import nearest, nearest_blocks
from dino_extract.analysis.vectors.stored import StoreSource, Vectors, opened, stored_vectors
from dino_extract.errors import ConfigError
from dino_extract.options import Limits, checked
from dino_extract.results import Result, plain, shown

NEIGHBOURS = 5
RARE = 0.99  # percentile rank from which an image counts as rare
MAX_COMPARED = 100_000  # more neighbours to choose from change little and cost time in proportion


class Outlier(NamedTuple):
    """One image of `Outliers`."""

    path: str
    isolation: float
    unusual: float
    nearest: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Outliers(Result):
    """Images, the most isolated first.

    Args:
        paths: (n,) all embedded images of the file.
        isolation: (n,) float32, 0..2: 1 less the mean cosine with the k nearest others.
        unusual: (n,) float32, 0..1: the share of the images they are compared with that are less isolated among themselves.
        nearest: (n,) path of the most similar of these.
        similarity: (n,) float32, -1..1, its cosine.
        num_compared: m.
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
        """The most isolated images, fewer than `count` where there are fewer."""
        columns = (self.paths, self.isolation.tolist(), self.unusual.tolist(), self.nearest, self.similarity.tolist())
        return [Outlier(*line) for line in zip(*(column[:count] for column in columns), strict=True)]

    @property
    def num_rare(self) -> int:
        """Number of images that are more isolated than 99 % of the reference images."""
        return int((self.unusual >= RARE).sum())

    def summary(self) -> str:
        """Number of images, of rare ones, and the most isolated image."""
        return f"{len(self):,} images, {self.num_rare:,} rare, most isolated {shown(self.paths[0])}"

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
    """The images of a file by how unlike all others they are, or with `against` how unlike those of another file.

    An image with a copy of itself beside it is no outlier by its nearest neighbour alone: the mean cosine with several decides. Distance to
    neighbours among known images is also a strong test for images of another kind (Sun et al., arXiv 2204.06507).

    Args:
        store: images to judge: store, or path of one.
        against: images that are taken for usual, made alike; without it the images of `store` themselves.
        neighbours: k; fewer where there are fewer images.
        dataset: vectors to compare.
        seed: of the 100,000 images that are drawn to compare with, where there are more.

    Raises:
        DinoExtractError: unfinished files, files made differently, fewer than two images to compare with, a store against itself, or no
            neighbour asked for.
    """
    neighbours = checked("neighbours", int, neighbours, Limits(least=1))
    with opened(store) as own:
        vectors = stored_vectors(own, dataset)
        if against is None:
            usual_paths, rows = own.paths, _sample(vectors, seed)
            similarity, index = _nearest_others(vectors, rows, neighbours)
            isolation = isolation_of(similarity)
            usual_isolation = isolation[rows]
        else:
            with opened(against) as other:
                require_other_file(own, other)
                require_made_alike(own, other)
                usual, usual_paths = stored_vectors(other, dataset), other.paths
                rows = _sample(usual, seed)
                bank = usual.take(rows)
                similarity, index = nearest(vectors, bank, neighbours)
                isolation = isolation_of(similarity)
                usual_isolation = isolation_of(nearest(bank, bank, neighbours, leave_one_out=True)[0])
        unusual = np.searchsorted(np.sort(usual_isolation), isolation) / len(rows)
        order = np.argsort(-isolation, kind="stable")
        own_paths = own.paths
        return Outliers(
            paths=[own_paths[row] for row in order.tolist()],
            isolation=isolation[order],
            unusual=unusual[order].astype(np.float32),
            nearest=[usual_paths[row] for row in rows[index[order, 0]].tolist()],
            similarity=similarity[order, 0],
            num_compared=len(rows),
        )


def isolation_of(similarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) 1 less the mean cosine with the neighbours, from (n, k) cosines."""
    isolation: NDArray[np.float32] = 1 - similarity.mean(axis=1)
    return isolation


def _sample(vectors: Vectors, seed: int) -> NDArray[np.int64]:
    """(m,) ascending rows to compare with: all, or so many drawn at random."""
    if len(vectors) < 2:
        raise ConfigError(f"{vectors.name} has {len(vectors)} image: nothing to compare it with", hint="two images or more are needed")
    if len(vectors) <= MAX_COMPARED:
        return np.arange(len(vectors))
    drawn = np.random.default_rng(seed).choice(len(vectors), MAX_COMPARED, replace=False)
    return np.sort(drawn).astype(np.int64)


def _nearest_others(vectors: Vectors, rows: NDArray[np.int64], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine (n, k) and position among `rows` (n, k) of the vectors nearest to each, best first; none is its own neighbour.

    Args:
        vectors: (n, D).
        rows: (m,) which of them may be neighbours.
        k: neighbours; fewer where there are fewer.
    """
    k, found = min(k, len(rows) - 1), []
    for first, similarity, index in nearest_blocks(vectors, vectors.take(rows), k + 1):
        is_other = rows[index] != np.arange(first, first + len(index))[:, None]
        is_other[is_other.all(axis=1), -1] = False  # not in the bank, or behind copies of itself: the last one goes
        found.append((similarity[is_other].reshape(-1, k), index[is_other].reshape(-1, k)))
    return np.concatenate([similarity for similarity, _ in found]), np.concatenate([index for _, index in found])
