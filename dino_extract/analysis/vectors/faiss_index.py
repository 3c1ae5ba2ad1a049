"""An approximate faiss index of the vectors of a store. It is built once, kept next to the file, and checked against it."""

from __future__ import annotations

import json
import os
import time
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.vectors.stored import Vectors, as_cosine
from dino_extract.errors import ConfigError, StoreError
from dino_extract.files import replace_atomically
from dino_extract.store import Store

IndexKind = Literal["hnsw", "ivfpq"]

HNSW_LINKS = 32  # per vector, 256 bytes
HNSW_BUILD = 100  # candidates for each inserted vector
HNSW_SEARCH = 128  # candidates for each query
IVF_TRAIN_PER_LIST = 40  # faiss warns below 39
IVF_PROBE = 32  # lists that are searched for each query
PQ_DIMS_PER_BYTE = 8  # 48 bytes for a ViT-S vector
RERANK = 10  # candidates per hit that are compared exactly, because PQ similarities are coarse
MIN_PQ_ROWS = 10_000


class Built(NamedTuple):
    """An index ready for use.

    Args:
        index: faiss index over inner products of unit vectors.
        path: the file of the index.
        seconds: time to build it, or 0 for an index that was read from its file.
    """

    index: Any
    path: str
    seconds: float


def open_index(store: Store, vectors: Vectors, dataset: str, kind: IndexKind) -> Built:
    """Read the index of a store, or build it where there is none or the store has changed.

    Raises:
        ConfigError: faiss is not installed, or there are too few vectors for this kind.
        StoreError: the index cannot be written.
    """
    faiss = _import_faiss()
    path = f"{store.path}.{dataset.replace('/', '-')}.{kind}.faiss"
    passport = _passport(store, vectors, dataset, kind)
    if _is_current(path, passport):
        with open(path, "rb") as file:
            return Built(faiss.read_index(f"/dev/fd/{file.fileno()}"), path, 0.0)
    started = time.monotonic()
    index = _build(faiss, vectors, kind)
    _keep(faiss, index, path, passport)
    return Built(index, path, time.monotonic() - started)


def search_index(built: Built, vectors: Vectors, queries: NDArray[np.float32], top: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As `nearest`: exact similarity and position of the best hits that the index finds.

    Args:
        built: the index.
        vectors: the vectors of the index.
        queries: (Q, D) float32 of length 1.
        top: number of hits per query.
    """
    wanted = min(top * RERANK, len(vectors))
    if hasattr(built.index, "hnsw"):
        built.index.hnsw.efSearch = max(HNSW_SEARCH, 2 * top)
        wanted = min(top, len(vectors))
    else:
        _import_faiss().extract_index_ivf(built.index).nprobe = IVF_PROBE
    _, candidates = built.index.search(queries, wanted)
    similarity = np.full((len(queries), top), -np.inf, np.float32)
    position = np.full((len(queries), top), -1, np.int64)
    for row, found in enumerate(candidates):
        found = np.sort(found[found >= 0])  # in the order of the bank, which a stable sort keeps for ties
        block = vectors[found]
        exact = as_cosine(block @ queries[row] / np.maximum(np.linalg.norm(block, axis=1), 1e-12))
        order = np.argsort(-exact, kind="stable")[:top]
        similarity[row, : len(order)], position[row, : len(order)] = exact[order], found[order]
    return similarity, position


def _import_faiss() -> Any:
    try:
        import faiss  # an optional package
    except ImportError as error:
        raise ConfigError("an approximate index needs faiss", hint="pip install 'dino-extract[faiss]', or use `--index exact`") from error
    return faiss


def _build(faiss: Any, vectors: Vectors, kind: IndexKind) -> Any:
    dim = vectors.dim
    if kind == "hnsw":
        # float16 needs half the memory of float32 and has the same recall.
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:1].copy())  # float16 learns nothing, but faiss asks for the call
        index.hnsw.efConstruction = HNSW_BUILD
    else:
        if len(vectors) < MIN_PQ_ROWS:
            raise ConfigError(
                f"`index` `ivfpq` needs at least {MIN_PQ_ROWS:,} images, {vectors.name} has {len(vectors):,}", hint="`--index exact`"
            )
        num_lists = min(int(4 * len(vectors) ** 0.5), len(vectors) // IVF_TRAIN_PER_LIST)
        codes = next(count for count in range(max(dim // PQ_DIMS_PER_BYTE, 1), 0, -1) if dim % count == 0)
        # Without OPQ: its rotation takes minutes to learn, and the exact comparison of candidates replaces it.
        index = faiss.index_factory(dim, f"IVF{num_lists},PQ{codes}", faiss.METRIC_INNER_PRODUCT)
        rng = np.random.default_rng(0)
        sample = np.sort(rng.choice(len(vectors), min(len(vectors), max(num_lists * IVF_TRAIN_PER_LIST, MIN_PQ_ROWS)), replace=False))
        index.train(vectors.take(sample).all_unit().numpy())
    for _, block in vectors.unit_blocks():
        index.add(block.numpy())
    return index


def _passport(store: Store, vectors: Vectors, dataset: str, kind: IndexKind) -> dict[str, Any]:
    """The facts that must be equal for an index to belong to a store. The rows of a store never change without its modification time."""
    info = os.stat(store.path)
    return {
        "store_nbytes": info.st_size,
        "store_mtime_ns": info.st_mtime_ns,
        "weights_sha256": str(store.attrs.get("weights_sha256", "")),
        "dataset": dataset,
        "rows": len(vectors),
        "dim": vectors.dim,
        "kind": kind,
    }


def _is_current(path: str, passport: dict[str, Any]) -> bool:
    try:
        with open(path + ".json", encoding="utf-8") as file:
            kept = json.load(file)
        return bool(kept == {**passport, "index_nbytes": os.stat(path).st_size})
    except (OSError, ValueError):
        return False  # missing or damaged: the index is built again


def _keep(faiss: Any, index: Any, path: str, passport: dict[str, Any]) -> None:
    """Write the index first and its passport last, so that a passport never describes half an index."""

    def replacing(path: str) -> AbstractContextManager[str]:  # faiss reports a full disk as RuntimeError
        return replace_atomically(
            path, "index", overwrite=True, also=(RuntimeError,), error=StoreError, hint="`--index exact` needs no index"
        )

    if os.path.lexists(path + ".json"):
        os.unlink(path + ".json")
    with replacing(path) as draft, open(draft, "wb") as index_file:
        faiss.write_index(index, f"/dev/fd/{index_file.fileno()}")  # faiss takes no path that is not UTF-8
    with replacing(path + ".json") as draft, open(draft, "w", encoding="utf-8") as file:
        json.dump({**passport, "index_nbytes": os.stat(path).st_size}, file)
