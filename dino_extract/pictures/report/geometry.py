"""The shape of a cloud of embeddings: lengths, spectrum, map, neighbours, outliers, duplicates and clusters.

Dimension key: n images, D width, k neighbours, C clusters.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.cluster import default_clusters
from dino_extract.analysis.dedup import DisjointSet
from dino_extract.analysis.outliers import NEIGHBOURS, isolation_of
from dino_extract.analysis.vectors.covariance import moments, principal_axes
from dino_extract.analysis.vectors.kmeans import kmeans
from dino_extract.analysis.vectors.near_pairs import near_pairs
from dino_extract.analysis.vectors.neighbours import nearest
from dino_extract.analysis.vectors.stored import Vectors, as_vectors, unit
from dino_extract.errors import ConfigError

Projection = Literal["auto", "pca", "tsne", "umap"]

TSNE_IMAGES = 5000  # above this t-SNE takes minutes
_SAME = 1e-6  # spread of vectors of length 1 that are the same but for rounding


@dataclass(frozen=True, eq=False)
class Survey:
    """Figures of all vectors of a file.

    Args:
        norms: (n,) float32 lengths.
        spectrum: (D,) float64 share of the variance along each principal axis, largest first.
        effective_rank: exp of the entropy of the singular values divided by their sum: D if all directions are used equally, 1 if all
            vectors are on one line. Source: Roy and Vetterli 2007; RankMe (arXiv 2210.02885), here of centred vectors.
        mean_cosine: similarity of two vectors drawn at random.
    """

    norms: NDArray[np.float32]
    spectrum: NDArray[np.float64]
    effective_rank: float
    mean_cosine: float


def survey(vectors: Vectors) -> Survey:
    """Figures of all vectors, read block by block."""
    norms, unit_sum = [], np.zeros(vectors.dim)

    def blocks() -> Iterator[NDArray[np.float32]]:
        nonlocal unit_sum
        for _, block in vectors.blocks():
            norms.append(np.linalg.norm(block.astype(np.float64), axis=1))
            unit_sum += unit(block).sum(dim=0).double().numpy()
            yield block

    total, _, scatter = moments(blocks())
    values = np.maximum(np.linalg.eigvalsh(scatter)[::-1], 0)
    singular = np.sqrt(values) / max(np.sqrt(values).sum(), 1e-300)
    entropy = -np.sum(singular * np.log(np.maximum(singular, 1e-300)))
    pairs = max(total * (total - 1), 1)
    mean_cosine = float((unit_sum @ unit_sum - total) / pairs) if total > 1 else 1.0
    return Survey(np.concatenate(norms).astype(np.float32), values / max(values.sum(), 1e-300), float(np.exp(entropy)), mean_cosine)


def maps_of(
    unit_nD: NDArray[np.float32],
    method: Projection,
    log: Callable[[str], None] | None = None,
    *,
    tsne_images: int = TSNE_IMAGES,
) -> dict[str, NDArray[np.float32]]:
    """Flat maps (n, 2) by name: PCA always, and one that keeps neighbours together if its library is installed.

    Args:
        unit_nD: (n, D) float32 vectors of length 1.
        method: `auto` takes t-SNE up to `tsne_images`, and UMAP above.
        log: called with a line before a map that takes long.
        tsne_images: above this many images t-SNE takes minutes.

    Raises:
        ConfigError: the library asked for is not installed.
    """
    log = log or (lambda line: None)
    count, mean_D, scatter_DD = moments([unit_nD])
    _, axes = principal_axes(scatter_DD / count, 50)
    principal = ((unit_nD - mean_D) @ axes.T).astype(np.float32)
    if principal.shape[1] < 2:
        principal = np.pad(principal, ((0, 0), (0, 1)))
    maps = {"PCA": principal[:, :2]}
    if method == "auto":
        method = _best_installed(len(unit_nD), tsne_images)
    if len(unit_nD) < 5 or principal[:, 0].std() < _SAME:  # too few for neighbourhoods, or one point, on which t-SNE ends the process
        return maps
    if method == "tsne":
        log(f"t-SNE of {len(unit_nD):,} images ...")
        maps["t-SNE"] = _tsne(principal)
    elif method == "umap":
        log(f"UMAP of {len(unit_nD):,} images ...")
        maps["UMAP"] = _umap(principal)
    return maps


def _best_installed(num_images: int, tsne_images: int) -> Projection:
    has_sklearn, has_umap = (importlib.util.find_spec(package) is not None for package in ("sklearn", "umap"))
    if has_sklearn and num_images <= tsne_images:
        return "tsne"
    return "umap" if has_umap else "pca"


def _tsne(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    try:
        from sklearn.manifold import TSNE  # seconds to import, and PCA is enough for many
    except ImportError as error:
        raise ConfigError("`projection` tsne needs scikit-learn", hint="pip install 'dino-extract[analysis]'") from error
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    points: NDArray[np.float32] = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
    return points


def _umap(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # parts of UMAP try to import TensorFlow
            from umap import UMAP  # takes seconds to import; a package called `umap` is another one
    except ImportError as error:
        raise ConfigError("`projection` umap needs umap-learn", hint="pip install umap-learn") from error
    mapper = UMAP(n_neighbors=min(15, len(vectors) - 1), random_state=0, n_jobs=1)
    points: NDArray[np.float32] = mapper.fit_transform(vectors)
    return points


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The neighbours, duplicates and cluster of each image.

    Args:
        index: (n, k) int64 nearest other images, nearest first.
        similarity: (n, k) float32 their cosine.
        isolation: (n,) float32, 1 less the mean cosine with the five nearest: large for an unusual image.
        duplicates: groups of positions, largest first.
        cluster: (n,) int64 number of the cluster, 0 the largest.
        centrality: (n,) float32 cosine with the centre of its cluster.
    """

    index: NDArray[np.int64]
    similarity: NDArray[np.float32]
    isolation: NDArray[np.float32]
    duplicates: list[list[int]]
    cluster: NDArray[np.int64]
    centrality: NDArray[np.float32]


def neighbourhood(unit_nD: NDArray[np.float32], *, neighbours: int, threshold: float, clusters: int) -> Neighbourhood:
    """Neighbours, outliers, duplicates and clusters of a few thousand vectors of length 1.

    Args:
        unit_nD: (n, D) float32.
        neighbours: k; fewer where there are fewer images.
        threshold: cosine from which two images count as duplicates.
        clusters: C; 0 takes about sqrt(n / 2), at most 30.
    """
    similarity, index = nearest(unit_nD, unit_nD, min(neighbours, len(unit_nD) - 1), leave_one_out=True)
    isolation = isolation_of(similarity[:, :NEIGHBOURS])
    linked = DisjointSet(len(unit_nD))
    for one, other, _ in near_pairs(as_vectors(unit_nD), threshold):
        linked.join(one, other)
    groups = [group.tolist() for group in linked.groups()]
    level = kmeans(unit_nD, min(clusters or default_clusters(len(unit_nD)), len(unit_nD)))
    return Neighbourhood(index, similarity, isolation, groups, level.codes, level.similarity)
