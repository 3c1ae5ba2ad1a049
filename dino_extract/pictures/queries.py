"""Search and classification with image files, which are embedded first, exactly as the file or the classifier was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dino_extract.analysis.probes.probe import Classified, Probe, classify_vectors
from dino_extract.analysis.probes.probe import classify as classify_store
from dino_extract.analysis.search import IndexChoice, SearchResult
from dino_extract.analysis.search import search as search_vectors
from dino_extract.analysis.vectors.stored import StoreSource, VectorSource, opened
from dino_extract.embedding.pipeline import embed_like
from dino_extract.errors import ConfigError
from dino_extract.store import Store, begins_as_hdf5

Query = str | os.PathLike[str] | Store


def search(
    store: StoreSource,
    queries: Query | Sequence[Query] | VectorSource | None = None,
    *,
    paths: str | Sequence[str] = (),
    top: int = 10,
    dataset: str = "features",
    index: IndexChoice = "auto",
    names: str | Sequence[str] = (),
    on_failure: Callable[[str, str], None] | None = None,
) -> list[SearchResult]:
    """The images of a store most similar to each query, by cosine, best first.

    Args:
        store: where to search.
        queries: image files, folders or archives, which are embedded first; other compatible stores, all images of which are queries;
            or (Q, D) vectors.
        paths: images of the store itself, or shell patterns of them, that are queries too. An image does not find itself.
        top: hits for each query; fewer where the store has fewer images.
        dataset: vectors to compare; with image files only `features`.
        index: `exact`; `hnsw` or `ivfpq` by faiss, kept next to the file; `auto` is exact up to two million images, then ivfpq if
            installed.
        names: names of the vectors in the result.
        on_failure: called with the path and the reason for each image file that cannot be embedded.

    Raises:
        StoreError: a store that is not compatible, unfinished, or without such a dataset.
        SourceError: none of the image files can be read.
        ConfigError: no query, another number of names than of vectors, a path that the store does not have, or faiss is needed and missing.
    """
    options: dict[str, Any] = {"top": top, "dataset": dataset, "index": index}
    if not _are_files(queries):
        return search_vectors(store, queries, paths=paths, names=names, **options)
    files, images = _stores_and_images(queries)
    if images and dataset != "features":
        hint = "embed them into an `.h5` file and give that"
        raise ConfigError(f"query images are compared by `features`, not by `{dataset}`", hint=hint)
    with opened(store) as bank:
        results: list[SearchResult] = []
        if paths or not (files or images):
            results += _from(bank, search_vectors(bank, paths=paths, **options))
        for each in files:
            results += _from(each, search_vectors(bank, each, **options))
        if images:
            embedded, vectors = embed_like(bank, images, on_failure=on_failure)
            results += search_vectors(bank, vectors, names=embedded, **options)
        return results


def classify(
    probe: Probe | str | os.PathLike[str],
    sources: Query | Sequence[Query],
    *,
    top: int = 1,
    on_failure: Callable[[str, str], None] | None = None,
) -> list[Classified]:
    """Label images with a probe, the most probable label first.

    Args:
        probe: a classifier trained by `linear`, or its file.
        sources: stores that are compatible with the training images; or image files, folders or archives, which are embedded first.
        top: labels for each image.
        on_failure: called with the path and the reason for each image file that cannot be embedded.

    Raises:
        ConfigError: no such probe, or a probe that needs more than CLS tokens for image files.
        StoreError: a store that is not compatible, or without the inputs of the probe.
        SourceError: none of the image files can be read.
    """
    trained = probe if isinstance(probe, Probe) else Probe.load(probe)
    files, images = _stores_and_images(sources)
    results = [line for each in files for line in classify_store(trained, each, top=top)]
    if images:
        if trained.datasets != ("features",):
            raise ConfigError(
                f"the probe takes {', '.join(trained.datasets)}, which are not computed for single images",
                hint="embed them into a file with the same `--tokens` and `--layers`, and classify that",
            )
        paths, vectors = embed_like(trained, images, on_failure=on_failure)
        results += classify_vectors(trained, vectors, paths, top=top)
    return results


def is_store(source: Query) -> bool:
    """Whether a source is a file of embeddings and not images, by its suffix or its first bytes."""
    if isinstance(source, Store):
        return True
    name = os.fspath(source)
    return name.endswith((".h5", ".hdf5")) or begins_as_hdf5(name)


def _from(source: StoreSource, results: list[SearchResult]) -> list[SearchResult]:
    """The results of queries that are images of a store."""
    path = source.path if isinstance(source, Store) else os.fspath(source)
    return [replace(result, source=path) for result in results]


def _are_files(queries: Any) -> bool:
    """Whether queries are files, images or stores, or none at all; vectors are not."""
    if queries is None or isinstance(queries, (str, os.PathLike, Store)):
        return True
    return isinstance(queries, Sequence) and all(isinstance(each, (str, os.PathLike, Store)) for each in queries)


def _stores_and_images(queries: Any) -> tuple[list[Query], list[str]]:
    """The files of embeddings among some files, and the names of the others."""
    found = [] if queries is None else [queries] if isinstance(queries, (str, os.PathLike, Store)) else list(queries)
    return [each for each in found if is_store(each)], [
        os.fspath(each) for each in found if not isinstance(each, Store) and not is_store(each)
    ]
