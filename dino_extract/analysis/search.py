"""Find the images most similar to a query, exactly or with an approximate index, and measure how well this retrieves a class."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dino_extract.analysis.vectors.faiss_index import open_index, search_index
from dino_extract.analysis.vectors.labels import LabelSource, classes_of, encode, labels_of
from dino_extract.analysis.vectors.neighbours import nearest
from dino_extract.analysis.vectors.stored import (
    OpenVectors,
    StoreSource,
    Vectors,
    VectorSource,
    as_vectors,
    open_vectors,
    require_same_dim,
    rows_where,
    unit,
)
from dino_extract.errors import ConfigError
from dino_extract.options import Limits, as_list, checked
from dino_extract.results import Result, shown
from dino_extract.store import Store

IndexChoice = Literal["auto", "exact", "hnsw", "ivfpq"]

EXACT_ROWS = 2_000_000  # up to this size `auto` searches exactly, which builds no index and misses nothing
SIMILARITIES = 64 << 20  # similarities that mAP sorts at a time
SCORE_QUERIES = 2000  # more queries change the third digit at most, and each sorts all images


@dataclass(frozen=True)
class Hit:
    """One image found: its path in the store and its cosine similarity, -1..1."""

    path: str
    similarity: float


@dataclass(frozen=True)
class SearchResult(Result):
    """The images found for one query, best first."""

    query: str
    hits: tuple[Hit, ...]
    source: str = ""  # the file of embeddings that the query is an image of; empty for a vector or an image file

    def summary(self) -> str:
        """The query, and the best hit."""
        best = f", best {self.hits[0].similarity:.4f} {shown(self.hits[0].path)}" if self.hits else ""
        return f"{shown(self.query)}, {len(self.hits):,} hits{best}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each hit."""
        return [{"query": self.query, "rank": rank, **asdict(hit)} for rank, hit in enumerate(self.hits, 1)]


def search(
    store: StoreSource,
    queries: VectorSource | StoreSource | None = None,
    *,
    paths: str | Sequence[str] = (),
    top: int = 10,
    dataset: str = "features",
    index: IndexChoice = "auto",
    names: str | Sequence[str] = (),
) -> list[SearchResult]:
    """The images of a store most similar to each query, by cosine, best first.

    Args:
        store: where to search.
        queries: (Q, D) vectors, or another compatible store, all images of which are queries.
        paths: images of the store itself that are queries too, by path or shell pattern. A query does not find itself.
        top: number of hits per query, fewer where the store has fewer images.
        dataset: vectors to compare.
        index: `exact`, or a faiss index that is kept next to the file: `hnsw` or `ivfpq`. `auto` is exact up to two million images, then
            `ivfpq` if faiss is installed.
        names: names of the query vectors in the result.

    Raises:
        StoreError: a store is unfinished, not compatible, or has no such dataset.
        ConfigError: there is no query, the numbers of names and vectors differ, the store has no such path, or faiss is not installed.
    """
    top = checked("top", int, top, Limits(least=1))
    checked("index", IndexChoice, index)
    with open_vectors(store, dataset) as bank:
        find = _Finder(bank, top, dataset, index)
        results = []
        if own := named_paths(bank.store, [str(path) for path in as_list(paths)]):
            rows = rows_of(bank.store, own)
            results += find(bank.vectors.take(rows), own, own_rows=rows)
        if isinstance(queries, (Store, str, os.PathLike)):
            with open_vectors(queries, dataset, like=bank) as other:
                results += find(other.vectors, other.store.paths)
        elif queries is not None:
            vectors = as_vectors(queries, "the queries")
            called = as_list(names) or [f"query {row}" for row in range(len(vectors))]
            if len(called) != len(vectors):
                raise ConfigError(f"{len(vectors):,} queries need as many names, got {len(called):,}")
            results += find(vectors, called)
    if not results:
        raise ConfigError("no query given", hint="name images, another `.h5` file, or `--path KEY` of an image in the file")
    return results


def named_paths(store: Store, patterns: Sequence[str]) -> list[str]:
    """Paths, with each shell pattern such as `cats/*` replaced by the paths of the embedded images that match it.

    An exact path is never treated as a pattern, so `a[1].jpg` works. A pattern without a match is kept, so that `rows_of` reports it.
    """
    paths = store.paths
    known = set(paths)
    found: dict[str, None] = {}
    for pattern in patterns:
        is_pattern = pattern not in known and glob.has_magic(pattern)
        matches = fnmatch.filter(paths, pattern) if is_pattern else []
        found |= dict.fromkeys(matches or [pattern])
    return list(found)


def rows_of(store: Store, paths: Sequence[str]) -> NDArray[np.int64]:
    """(n,) positions of images among the embedded ones.

    Raises:
        ConfigError: the store has no such image.
    """
    row_of = {path: row for row, path in enumerate(store.paths)}
    missing = [path for path in paths if path not in row_of]
    if missing:
        failed = {failure.path: failure.error for failure in store.failures}
        if missing[0] in failed:
            raise ConfigError(f"`{missing[0]}` has no embedding: {failed[missing[0]]}")
        raise ConfigError(f"`{store.path}` has no image `{missing[0]}`", hint=f"keys look like `{next(iter(row_of), '')}`")
    return np.array([row_of[path] for path in paths], np.int64)


@dataclass(frozen=True)
class _Finder:
    """A search in one store."""

    bank: OpenVectors
    top: int
    dataset: str
    index: IndexChoice

    def __call__(self, queries: Vectors, names: Sequence[str], *, own_rows: NDArray[np.int64] | None = None) -> list[SearchResult]:
        """The hits of each query; `own_rows` are rows of the store that the queries themselves are."""
        require_same_dim(queries, self.bank.vectors)
        similarity, position = self._nearest(queries, self.top + (own_rows is not None))
        paths = self.bank.store.paths
        results = []
        for row, name in enumerate(names):
            is_hit = position[row] >= 0
            if own_rows is not None:
                is_hit &= position[row] != own_rows[row]
            found = rows_where(is_hit)[: self.top].tolist()
            results.append(SearchResult(name, tuple(Hit(paths[position[row, each]], float(similarity[row, each])) for each in found)))
        return results

    def _nearest(self, queries: Vectors, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        store, vectors = self.bank
        kind = _choose(self.index, len(vectors))
        if kind == "exact":
            return nearest(queries, vectors, count)
        return search_index(open_index(store, vectors, self.dataset, kind), vectors, unit(queries[:]).numpy(), count)


def _choose(index: IndexChoice, rows: int) -> Literal["exact", "hnsw", "ivfpq"]:
    if index != "auto":
        return index
    if rows <= EXACT_ROWS:
        return "exact"
    try:
        import faiss  # noqa: F401  # an optional package: without it the exact search answers, more slowly
    except ImportError:
        return "exact"
    return "ivfpq"


@dataclass(frozen=True)
class RetrievalScore(Result):
    """How well images of the same label are found.

    Args:
        mean_average_precision: mean over the queries, 0..1.
        top1: share of the queries whose first hit has their label.
        queries: number of queries: the images whose label another image has too, or a random part of them.
        chance: approximate mean average precision of a random order: the mean share of images with the label of the query.
    """

    mean_average_precision: float
    top1: float
    queries: int
    chance: float

    def summary(self) -> str:
        """The score, and the number of queries."""
        return f"mAP {self.mean_average_precision:.4f}, first hit right {self.top1:.1%}, {self.queries:,} queries, chance {self.chance:.4f}"


def retrieval_score(
    store: StoreSource,
    *,
    labels: LabelSource = None,
    label_depth: int = 1,
    dataset: str = "features",
    max_queries: int | None = SCORE_QUERIES,
    seed: int = 0,
) -> RetrievalScore:
    """Mean average precision of finding images with the label of the query among all other images of a store.

    Args:
        store: store, or path of one.
        labels: a file or a list, see `labels_of`. None takes the folder names.
        label_depth: number of folders above the image: 1 is the folder it is in.
        dataset: vectors to compare.
        max_queries: use at most this many random queries.
        seed: seed of the choice of queries.

    Raises:
        DinoExtractError: the store is unfinished, there are no labels, or no label occurs twice.
    """
    with open_vectors(store, dataset) as found:
        names = labels_of(found.store, labels, label_depth)
        return score_retrieval(found.vectors, encode(names, classes_of(names)), max_queries=max_queries, seed=seed)


def score_retrieval(
    vectors: VectorSource,
    codes: NDArray[np.int64],
    *,
    max_queries: int | None = None,
    seed: int = 0,
    similarities: int = SIMILARITIES,
) -> RetrievalScore:
    """As `retrieval_score`, for vectors and the class of each.

    The average precision of a query is the mean, over its relevant images, of (relevant images up to this one) / (rank of this one).

    Args:
        vectors: (n, D).
        codes: (n,) class of each image. -1 stands for an image without a class: it is neither a query nor relevant.
        max_queries: use at most this many random queries. Each of them sorts all images.
        seed: seed of the choice of queries.
        similarities: number of similarities to sort at a time.

    Raises:
        ConfigError: no label occurs twice.
    """
    vectors = as_vectors(vectors)
    assert len(codes) == len(vectors), "one code per vector"
    counts = np.bincount(codes[codes >= 0], minlength=1)
    eligible = rows_where((codes >= 0) & (counts[np.maximum(codes, 0)] > 1))
    if len(eligible) == 0:
        raise ConfigError("retrieval cannot be measured: no label occurs on two images")
    if max_queries is not None and len(eligible) > max_queries:
        eligible = np.sort(np.random.default_rng(seed).choice(eligible, max_queries, replace=False))
    step = max(1, similarities // len(vectors))
    precisions, firsts = [], []
    for start in range(0, len(eligible), step):
        rows = eligible[start : start + step]
        query_QD = unit(vectors[rows])
        similarity_Qn = torch.cat([query_QD @ block.T for _, block in vectors.unit_blocks()], dim=1)
        similarity_Qn[torch.arange(len(rows)), torch.from_numpy(rows)] = -torch.inf
        order_Qn = similarity_Qn.sort(dim=1, descending=True, stable=True).indices[:, :-1].numpy()
        is_relevant_Qn = codes[order_Qn] == codes[rows][:, None]
        found_Qn = is_relevant_Qn.cumsum(axis=1)
        rank_n = np.arange(1, len(vectors))
        precisions.append((found_Qn / rank_n * is_relevant_Qn).sum(axis=1) / found_Qn[:, -1])
        firsts.append(is_relevant_Qn[:, 0])
    chance = float(np.mean((counts[codes[eligible]] - 1) / (len(vectors) - 1)))
    return RetrievalScore(float(np.concatenate(precisions).mean()), float(np.concatenate(firsts).mean()), len(eligible), chance)
