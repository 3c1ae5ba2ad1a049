"""One self-contained HTML page about a store: its contents, how it was made, and its images.

`survey` and `neighbourhood` (`geometry`) compute the figures, `thumbnails` draws the images, `facts` reads the attributes of the file,
and `page` writes the HTML.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dino_extract.analysis.dedup import THRESHOLD, require_threshold
from dino_extract.analysis.vectors.labels import LabelSource, folder_labels, labels_of
from dino_extract.analysis.vectors.stored import StoreSource, opened, stored_vectors, unit
from dino_extract.errors import ConfigError
from dino_extract.files import check_target, replace_atomically
from dino_extract.names import counted, printable
from dino_extract.options import Limits, checked
from dino_extract.pictures.report.facts import MAX_FAILURES_SHOWN, failures, how_it_was_made, what_is_in_it
from dino_extract.pictures.report.geometry import Neighbourhood, Projection, Survey, maps_of, neighbourhood, survey
from dino_extract.pictures.report.page import (
    base64_array,
    curve_svg,
    fact_table,
    failure_table,
    figures,
    fill_page,
    gallery,
    histogram_svg,
    paragraph,
    section,
)
from dino_extract.pictures.report.thumbnails import Thumbnails, thumbnails_of
from dino_extract.pictures.source_images import choose_positions
from dino_extract.results import Result, shown
from dino_extract.store import Store

__all__ = ["MAX_IMAGES", "ReportResult", "report"]

MAX_IMAGES = 10_000  # on the map; a page with more is slow to load
NUM_NEIGHBOURS = 12
_CLUSTER_SHOWN = 14  # most typical images of each cluster


@dataclass(frozen=True, repr=False)
class ReportResult(Result):
    """The page that was written and the figures on it.

    Args:
        path: the HTML file.
        images: embedded images of the store.
        shown: of these, on the map.
        failed: images without an embedding.
        effective_rank: see `Survey`.
        duplicate_groups: groups of near-duplicates among those shown.
        nbytes: size of the page.
        lost: images shown that are no longer where they were embedded from, and so have no thumbnail.
    """

    path: str
    images: int
    shown: int
    failed: int
    effective_rank: float
    duplicate_groups: int
    nbytes: int
    lost: int

    def summary(self) -> str:
        """Path, images and size."""
        return f"{shown(self.path)}, {self.shown:,} of {counted(self.images, 'image')}, {self.nbytes / 1e6:.1f} MB"


def report(
    store: StoreSource,
    output: str | os.PathLike[str] | None = None,
    *,
    labels: LabelSource = None,
    label_depth: int = 1,
    dataset: str = "features",
    images: int = MAX_IMAGES,
    projection: Projection = "auto",
    clusters: int = 0,
    threshold: float = THRESHOLD,
    overwrite: bool = False,
    log: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ReportResult:
    """Write a page that works offline: facts about the file, failures, figures, and a map of the images to hover and click.

    Args:
        store: a finished file, or its path.
        output: the page; by default next to the store, with `.html`.
        labels: a file or a list, see `labels_of`, by which the map is coloured; None for the folders alone.
        label_depth: which folder above an image colours the map: 1 is the folder it is in.
        dataset: one vector for each image.
        images: at most this many on the map, evenly spread over the file. The figures are always of all images.
        projection: how the map is computed; `auto` takes what is installed and fast enough.
        clusters: number of clusters; 0 takes about the square root of half the number of images.
        threshold: cosine from which two images count as duplicates.
        overwrite: replace an existing page.
        log: called with a line when a stage begins.
        on_progress: called with the number of thumbnails done and of all.

    Raises:
        StoreError: an unfinished or empty file, or values that are not finite.
        SourceError: the labels cannot be read.
        ConfigError: a threshold that is not a cosine above 0, a missing library, or the page exists or cannot be written.
    """
    log = log or (lambda line: None)
    checked("projection", Projection, projection)
    require_threshold(threshold)
    checked("images", int, images, Limits(least=2))
    with opened(store) as file:
        path = os.fspath(output) if output is not None else os.path.splitext(file.path)[0] + ".html"
        check_target(path, "page", overwrite=overwrite)
        vectors = stored_vectors(file, dataset)
        names = None if labels is None else labels_of(file, labels)
        positions = choose_positions(file, images=images)
        if len(positions) < 2:
            raise ConfigError(f"`{file.path}` holds one embedded image, a map needs at least 2")
        log(f"figures and neighbours of {len(vectors):,} images ...")
        figures_of_all = survey(vectors)
        unit_nD = unit(vectors[np.array(positions)]).numpy()
        near = neighbourhood(unit_nD, neighbours=NUM_NEIGHBOURS, threshold=threshold, clusters=clusters)
        maps = maps_of(unit_nD, projection, log)
        all_paths = file.paths
        paths = [all_paths[position] for position in positions]
        log(f"thumbnails of {len(paths):,} images ...")
        thumbnails = thumbnails_of(file, paths, on_progress)
        data = {
            **_image_data(paths, near, thumbnails),
            **_folder_data(paths, label_depth),
            **(_label_data([names[position] for position in positions]) if names is not None else {}),
            "maps": {name: base64_array(points, "f4") for name, points in maps.items()},
            "norms": base64_array(figures_of_all.norms[positions], "f4"),
        }
        page = fill_page(
            title=printable(os.path.basename(file.path)),
            summary=f"{len(file):,} images embedded with {file.attrs.get('model', 'an unknown model')}",
            notes=_notes(file, positions, thumbnails),
            sections=_sections(file, figures_of_all, near, threshold),
            data=data,
        )
        with replace_atomically(path, "page", overwrite=overwrite) as partial, open(partial, "w", encoding="utf-8", newline="\n") as text:
            text.write(page)
        return ReportResult(
            path=path,
            images=len(file),
            shown=len(positions),
            failed=len(file.all_paths) - len(file),
            effective_rank=figures_of_all.effective_rank,
            duplicate_groups=len(near.duplicates),
            nbytes=len(page.encode()),
            lost=int((thumbnails.size[:, 0] == 0).sum()),
        )


def _image_data(paths: Sequence[str], near: Neighbourhood, thumbnails: Thumbnails) -> dict[str, Any]:
    """The data of each image that the script of the page reads."""
    num_clusters = int(near.cluster.max()) + 1
    typical = [np.flatnonzero(near.cluster == each) for each in range(num_clusters)]
    return {
        "names": [printable(path) for path in paths],
        "neighbours": base64_array(near.index, "i4"),
        "similarity": base64_array(near.similarity, "f4"),
        "isolation": base64_array(near.isolation, "f4"),
        "cluster": base64_array(near.cluster, "i4"),
        "numClusters": num_clusters,
        "clusterShown": [found[np.argsort(-near.centrality[found], kind="stable")][:_CLUSTER_SHOWN].tolist() for found in typical],
        "duplicates": near.duplicates,
        "sheets": [_base64(sheet) for sheet in thumbnails.sheets],
        "side": thumbnails.side_px,
        "perRow": thumbnails.per_row,
        "thumbSize": base64_array(thumbnails.size, "u1"),
    }


def _folder_data(paths: Sequence[str], label_depth: int) -> dict[str, Any]:
    names, numbers = _commonest_first([printable(folder) or "(top)" for folder in folder_labels(paths, label_depth)])
    return {"folders": names, "folder": numbers}


def _label_data(labels: Sequence[str]) -> dict[str, Any]:
    names, numbers = _commonest_first([printable(label) or "(no label)" for label in labels])
    return {"labels": names, "label": numbers}


def _commonest_first(kinds: Sequence[str]) -> tuple[list[str], str]:
    """The different kinds, the commonest first; and the number of the kind of each image, as base64."""
    names = [name for name, _ in Counter(kinds).most_common()]
    number_of = {name: number for number, name in enumerate(names)}
    return names, base64_array(np.array([number_of[kind] for kind in kinds]), "i4")


def _base64(content: bytes) -> str:
    return base64_array(np.frombuffer(content, np.uint8), "u1")


def _notes(store: Store, positions: Sequence[int], thumbnails: Thumbnails) -> list[str]:
    notes = []
    if len(positions) < len(store):
        notes.append(
            f"The map shows {len(positions):,} of the {len(store):,} images, evenly spread; "
            "neighbours, duplicates and clusters are among these."
        )
    lost = int((thumbnails.size[:, 0] == 0).sum())
    if lost:
        notes.append(f"{lost:,} of these images can no longer be read from where they were embedded, and have no thumbnail.")
    return notes


def _sections(store: Store, figures_of_all: Survey, near: Neighbourhood, threshold: float) -> list[str]:
    failed = failures(store)
    num_failed = len(store.all_paths) - len(store)
    sections = [
        section("What is in it", fact_table(what_is_in_it(store))),
        section("How it was made", fact_table(how_it_was_made(store))),
        _length_section(figures_of_all),
        _spectrum_section(figures_of_all),
        section(
            "Outliers",
            paragraph("The most isolated images, with their mean cosine similarity to the five most similar ones."),
            gallery("outliers"),
            is_wide=True,
        ),
        section(
            "Duplicates",
            paragraph(
                f"{len(near.duplicates):,} groups of images linked by a cosine similarity of {threshold} or more."
                if near.duplicates
                else f"No two images have a cosine similarity of {threshold} or more."
            ),
            gallery("duplicates"),
            is_wide=True,
        ),
        section("Clusters", paragraph("By k-means on the sphere; the images closest to each centre."), gallery("clusters"), is_wide=True),
    ]
    if failed:
        more = f" The first {MAX_FAILURES_SHOWN:,} of them:" if num_failed > MAX_FAILURES_SHOWN else ""
        text = f"{num_failed:,} images could not be embedded; they have no vector and are left out of everything else.{more}"
        sections.insert(2, section("Failures", paragraph(text), failure_table(failed), is_wide=True))
    return sections


def _length_section(figures_of_all: Survey) -> str:
    norms = figures_of_all.norms
    median = float(np.median(norms))
    spread = 1.4826 * float(np.median(np.abs(norms - median)))  # the standard deviation of a normal distribution
    unusual = int((np.abs(norms - median) > 5 * spread).sum()) if spread > 0 else 0
    return section(
        "Vector lengths",
        figures([(f"{median:.4g}", "median length"), (f"{spread:.2g}", "spread (MAD)"), (f"{unusual:,}", "more than 5 spreads away")]),
        histogram_svg(norms, "length of the vectors"),
    )


def _spectrum_section(figures_of_all: Survey) -> str:
    cumulative = np.cumsum(figures_of_all.spectrum)
    for_90 = int(np.searchsorted(cumulative, 0.9)) + 1
    dim = len(cumulative)
    return section(
        "Dimensions in use",
        figures(
            [
                (f"{figures_of_all.effective_rank:.1f}", f"effective rank of {dim}"),
                (f"{min(for_90, dim)}", "axes hold 90% of the variance"),
                (f"{figures_of_all.mean_cosine:.3f}", "mean cosine of two images"),
            ]
        ),
        curve_svg(cumulative, "share of the variance in the first axes"),
    )
