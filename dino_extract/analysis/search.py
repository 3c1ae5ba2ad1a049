"""Find the images most similar to others, exactly or by an approximate index, and measure how well that retrieves a class."""

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

from dino_extract.analysis.vectors.compatible import require_made_alike
from dino_extract.analysis.vectors.faiss_index import open_index, search_index
from dino_extract.analysis.vectors.neighbours import nearest
from dino_extract.analysis.vectors.stored import (
    StoreSource,
    Vectors,
    VectorSource,
    as_vectors,
    opened,
    require_same_dim,
    rows_where,
    stored_vectors,
    unit,
)
from dino_extract.errors import ConfigError
from dino_extract.options import Limits, as_list, checked
from dino_extract.results import Result, shown
from dino_extract.store import Store

IndexChoice = Literal["auto", "exact", "hnsw", "ivfpq"]

EXACT_ROWS = 2_000_000  # up to here `auto` searches exactly: nothing to build, nothing missed
_SIMILARITIES = 64 << 20  # that mAP sorts at a time


@dataclass(frozen=True)
class Hit:
    """One image found: its path in the store and its cosine similarity, -1..1."""

    path: str
    similarity: float


@dataclass(frozen=True)
class SearchResult(Result):
    """What was found for one query, best first."""

    query: str
    hits: tuple[Hit, ...]

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
        queries: (Q, D) vectors, or another store made alike, all of whose images are queries.
        paths: images of the store itself, or shell patterns of them, that are queries too; they are not found themselves.
        top: hits per query; fewer where the store has fewer images.
        dataset: vectors to compare.
        index: exact; hnsw or ivfpq by faiss, kept beside the file; auto is exact up to two million images, then ivfpq if installed.
        names: what the queries that are vectors are called in the result.

    Raises:
        StoreError: a store made differently, unfinished, or without such a dataset.
        ConfigError: no query, another number of names than of vectors, a path that the store does not have, or faiss is needed and missing.
    """
    top = checked("top", int, top, Limits(least=1))
    checked("index", IndexChoice, index)
    with opened(store) as bank_store:
        bank = stored_vectors(bank_store, dataset)
        results = []
        if own := named_paths(bank_store, [str(path) for path in as_list(paths)]):
            rows = rows_of(bank_store, own)
            results += _search(bank_store, bank, bank.take(rows), own, top, dataset, index, own_rows=rows)
        if isinstance(queries, (Store, str, os.PathLike)):
            with opened(queries) as query_store:
                require_made_alike(bank_store, query_store)
                vectors = stored_vectors(query_store, dataset)
                results += _search(bank_store, bank, vectors, query_store.paths, top, dataset, index)
        elif queries is not None:
            vectors = as_vectors(queries, "the queries")
            called = as_list(names) or [f"query {row}" for row in range(len(vectors))]
            if len(called) != len(vectors):
                raise ConfigError(f"{len(vectors):,} queries need as many names, got {len(called):,}")
            results += _search(bank_store, bank, vectors, called, top, dataset, index)
    if not results:
        raise ConfigError("no query given", hint="name images, another `.h5` file, or `--path KEY` of an image in the file")
    return results


def named_paths(store: Store, patterns: Sequence[str]) -> list[str]:
    """Paths as they are, and shell patterns such as `cats/*` as the paths of embedded images that they match.

    What is the path of an image is no pattern: `a[1].jpg`. A pattern that matches nothing stays, for the error that `rows_of` has for it.
    """
    paths = store.paths
    known = set(paths)
    found: dict[str, None] = {}
    for pattern in patterns:
        is_pattern = pattern not in known and glob.has_magic(pattern)
        found |= dict.fromkeys((is_pattern and fnmatch.filter(paths, pattern)) or [pattern])
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


def _search(
    store: Store,
    bank: Vectors,
    queries: Vectors,
    names: Sequence[str],
    top: int,
    dataset: str,
    index: IndexChoice,
    own_rows: NDArray[np.int64] | None = None,
) -> list[SearchResult]:
    require_same_dim(queries, bank)
    more = top + (own_rows is not None)
    kind = _choose(index, len(bank))
    if kind == "exact":
        similarity, position = nearest(queries, bank, more)
    else:
        built = open_index(store, bank, dataset, kind)
        similarity, position = search_index(built, bank, unit(queries[:]).numpy(), more)
    bank_paths = store.paths
    results = []
    for row, name in enumerate(names):
        is_hit = position[row] >= 0
        if own_rows is not None:
            is_hit &= position[row] != own_rows[row]
        found = rows_where(is_hit)[:top]
        results.append(
            SearchResult(name, tuple(Hit(bank_paths[position[row, each]], float(similarity[row, each])) for each in found.tolist()))
        )
    return results


def _choose(index: IndexChoice, num_rows: int) -> Literal["exact", "hnsw", "ivfpq"]:
    if index != "auto":
        return index
    if num_rows <= EXACT_ROWS:
        return "exact"
    try:
        import faiss  # noqa: F401  # an extra: without it exact search still answers, only later
    except ImportError:
        return "exact"
    return "ivfpq"


@dataclass(frozen=True)
class RetrievalScore:
    """How well images of the same label are found.

    Args:
        mean_average_precision: mean over the queries, 0..1.
        top1: share of queries whose first hit has their label.
        queries: images used as queries: those whose label another image has too, or a random part of them.
        chance: mean average precision of a random order, approximately: the mean share of images with the query's label.
    """

    mean_average_precision: float
    top1: float
    queries: int
    chance: float


def retrieval_score(vectors: VectorSource, codes: NDArray[np.int64], *, max_queries: int | None = None, seed: int = 0) -> RetrievalScore:
    """Mean average precision of finding images with the query's label among all other images.

    Average precision of one query = mean over its R relevant images of (relevant images up to this one) / (rank of this one).

    Args:
        vectors: (n, D).
        codes: (n,) class of each image; -1 for none: neither a query nor relevant.
        max_queries: use at most this many random queries; each costs a sort of all images.
        seed: of the choice.

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
    step = max(1, _SIMILARITIES // len(vectors))
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
