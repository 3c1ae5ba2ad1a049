"""`search`: the images of a file that are most similar to others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

import dino_extract as dx
from dino_extract.cli.options import (
    AsJson,
    Dataset,
    LabelDepth,
    Labels,
    Overwrite,
    Seed,
    Sheet,
    check_targets,
    draw_sheet,
    end_with_failures,
    print_json,
)
from dino_extract.errors import ConfigError

if TYPE_CHECKING:
    from dino_extract.analysis.search import RetrievalScore

EXAMPLES = """Examples:

  dino-extract search photos.h5 new.jpg --sheet found.png

  dino-extract search photos.h5 --path 'cats/*' --top 20 --json

  dino-extract search photos.h5 --score  # how well folders are found again"""


def search(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="The file to search.")],
    queries: Annotated[list[str] | None, typer.Argument(metavar="QUERY...", help="Images, folders, or other .h5 files.")] = None,
    paths: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="KEY", help="Search for an image of FILE.h5, or for a pattern 'cats/*' (repeatable)."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Show this many images for each query.")] = 10,
    dataset: Dataset = "features",
    index: Annotated[
        Literal["auto", "exact", "hnsw", "ivfpq"],
        typer.Option(help="Search exactly, or with an approximate faiss index that is kept next to the file."),
    ] = "auto",
    score: Annotated[bool, typer.Option("--score", help="Measure instead how well images with the same label are found (mAP).")] = False,
    labels: Labels = None,
    label_depth: LabelDepth = 1,
    seed: Seed = 0,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find the images most similar to a query, by the cosine of their embeddings.

    Images given as queries are embedded first, with exactly the model and settings that FILE.h5 was made with.
    """
    check_targets({"contact sheet": sheet}, overwrite=overwrite)
    if score:
        if queries or paths or sheet:
            raise ConfigError("`--score` only measures: it takes no query, `--path` or `--sheet`")
        _print_score(dx.retrieval_score(file, labels=labels, label_depth=label_depth, dataset=dataset, seed=seed), as_json)
        return
    failed: list[str] = []
    results = dx.search(
        file,
        queries or [],
        paths=paths or (),
        top=top,
        dataset=dataset,
        index=index,
        on_failure=lambda image, error: failed.append(f"{image}: {error}"),
    )
    draw_sheet(results, file, sheet, overwrite=overwrite)
    if as_json:
        print_json(results)
    else:
        for result in results:
            print(f"{result.query}\n  rank  similarity  path")
            for rank, hit in enumerate(result.hits, 1):
                print(f"  {rank:4}  {hit.similarity:10.4f}  {hit.path}")
    end_with_failures(failed)


def _print_score(score: RetrievalScore, as_json: bool) -> None:
    if as_json:
        print_json(score)
        return
    accuracy = f"mAP {score.mean_average_precision:.4f}   first hit right {score.top1:.2%}"
    print(f"{accuracy}   {score.queries:,} queries   chance {score.chance:.4f}")
