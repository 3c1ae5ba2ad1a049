"""`search`: the images of a file most similar to others."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dino_extract.cli.options import (
    AsJson,
    Dataset,
    LabelDepth,
    Labels,
    Seed,
    Sheet,
    end_with_failures,
    is_store,
    note_lost,
    print_json,
    say,
)
from dino_extract.errors import ConfigError

if TYPE_CHECKING:
    from dino_extract.analysis.search import IndexChoice, SearchResult
    from dino_extract.store import Store
else:
    from typing import Literal

    IndexChoice = Literal["auto", "exact", "hnsw", "ivfpq"]  # as in analysis.search, which loads torch

EXAMPLES = """Examples:

  dino-extract search photos.h5 new.jpg --sheet found.png

  dino-extract search photos.h5 --path cats/17.jpg --top 20 --json

  dino-extract search photos.h5 --map                     how well folders are found again"""

MAP_QUERIES = 2000  # more change the third digit at most, and each costs a sort of the whole file
MAX_SHEET_QUERIES = 40


def search(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="Where to search.")],
    queries: Annotated[list[str] | None, typer.Argument(metavar="QUERY...", help="Images, folders, or another .h5 file.")] = None,
    path: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Image of FILE.h5, or pattern 'cats/*' (repeatable).")] = None,
    top: Annotated[int, typer.Option("--top", "-k", help="Images to find for each query.")] = 10,
    dataset: Dataset = "features",
    index: Annotated[IndexChoice, typer.Option(help="exact, or an approximate faiss index kept beside the file.")] = "auto",
    measure: Annotated[bool, typer.Option("--map", help="Measure retrieval of images with the same label (mAP).")] = False,
    labels: Labels = None,
    label_depth: LabelDepth = 1,
    seed: Seed = 0,
    sheet: Sheet = None,
    as_json: AsJson = False,
) -> None:
    """Find the images most similar to a query, by the cosine of their embeddings.

    Images given as queries are embedded first, with exactly the model and settings that FILE.h5 was made with.
    """
    from dino_extract.analysis.search import named_paths  # loads torch, which `--help` must not wait for
    from dino_extract.analysis.vectors.stored import opened
    from dino_extract.analysis.writing import require_picture_place

    require_picture_place(sheet, "contact sheet")
    if measure and (queries or path or sheet):
        raise ConfigError("`--map` only measures: it takes no query, `--path` or `--sheet`")
    with opened(file) as store:
        if measure:
            _measure(store, dataset, labels, label_depth, seed, as_json)
            return
        failed: list[str] = []
        path = named_paths(store, path or [])
        results = _results(store, queries or [], path, top, dataset, index, failed)
        if sheet:
            _draw(store, results, queries or [], path, sheet)
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        for result in results:
            print(f"{result.query}\n  rank  similarity  path")
            for rank, hit in enumerate(result.hits, 1):
                print(f"  {rank:4}  {hit.similarity:10.4f}  {hit.path}")
    end_with_failures(failed)


def _results(
    store: Store, queries: list[str], paths: list[str], top: int, dataset: str, index: IndexChoice, failed: list[str]
) -> list[SearchResult]:
    """What is found for every query; query images that cannot be embedded are added to `failed`."""
    from dino_extract.analysis.search import search as find

    stores = [query for query in queries if is_store(query)]
    images = [query for query in queries if not is_store(query)]
    results = find(store, paths=paths, top=top, dataset=dataset, index=index) if paths or not queries else []
    for query_file in stores:
        results += find(store, query_file, top=top, dataset=dataset, index=index)
    if images:
        if dataset != "features":
            raise ConfigError(
                f"query images are compared by `features`, not by `{dataset}`", hint="embed them into an `.h5` file and give that"
            )
        from dino_extract.embedding.pipeline import embed_like  # the model is loaded for query images alone

        names, vectors = embed_like(store, images, on_failure=lambda image, error: failed.append(f"{image}: {error}"))
        results += find(store, vectors, top=top, dataset=dataset, index=index, names=names)
    return results


def _measure(store: Store, dataset: str, labels: str | None, label_depth: int, seed: int, as_json: bool) -> None:
    from dino_extract.analysis.search import retrieval_score

    score = retrieval_score(store, labels=labels, label_depth=label_depth, dataset=dataset, max_queries=MAP_QUERIES, seed=seed)
    if as_json:
        print_json(asdict(score))
        return
    print(
        f"mAP {score.mean_average_precision:.4f}   first hit right {score.top1:.2%}   {score.queries:,} queries   chance {score.chance:.4f}"
    )


def _draw(store: Store, results: list[SearchResult], queries: list[str], paths: list[str], sheet: str) -> None:
    from dino_extract.analysis.vectors.stored import opened
    from dino_extract.names import printable
    from dino_extract.pictures.sheets import Strip, Tile, draw_strips, file_tile, stored_tile

    with contextlib.ExitStack() as stack:
        home = dict.fromkeys(paths, store)  # of every query that is an image of a store
        for query in queries:
            if is_store(query):
                other = stack.enter_context(opened(query))
                home.update((path, other) for path in other.paths if path not in home)

        def query_tile(name: str) -> Tile:
            return stored_tile(home[name], name, "query", is_framed=True) if name in home else file_tile(name, "query", is_framed=True)

        strips = [
            Strip(
                printable(result.query),
                [query_tile(result.query), *(stored_tile(store, hit.path, f"{hit.similarity:.4f}") for hit in result.hits)],
            )
            for result in results[:MAX_SHEET_QUERIES]
        ]
    note_lost(draw_strips(strips, sheet, columns=min(max(len(strip.tiles) for strip in strips), 11)))
    shown = f" of the first {len(strips)} queries" if len(strips) < len(results) else ""
    say(f"contact sheet{shown}: {sheet}")
