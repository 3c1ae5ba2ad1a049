"""Contact sheets of results: the images that a search, a deduplication, an outlier search or a clustering has found.

Each kind of result becomes strips of images (`strips`); `sheet` draws them into one file, or for clusters into a folder.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_extract.analysis.cluster import Clustering
from dino_extract.analysis.dedup import DedupResult, Leak
from dino_extract.analysis.outliers import Outliers
from dino_extract.analysis.search import SearchResult
from dino_extract.analysis.vectors.kmeans import Clusters
from dino_extract.analysis.vectors.stored import StoreSource, opened
from dino_extract.errors import ConfigError
from dino_extract.files import check_target, writing
from dino_extract.names import printable
from dino_extract.pictures.layout import check_picture_target
from dino_extract.pictures.strips import COLUMNS, Strip, Tile, draw_strips, file_tile, stored_tile
from dino_extract.store import Store

SheetSource = SearchResult | Sequence[SearchResult] | DedupResult | Sequence[Leak] | Outliers | Clustering | Clusters

OVERVIEW = "clusters.png"
_CLUSTER_SHEET = re.compile(r"cluster-(\d{4,})\.png")
_MAX_STRIPS = 40  # of queries, groups or clusters on one sheet
_MAX_GROUP = 16  # images of one group
_MAX_OUTLIERS = 200
_MAX_CLUSTER = 24  # most typical images of one cluster
_MAX_COLUMNS = 11  # a query and ten images


@dataclass(frozen=True)
class ContactSheet:
    """A contact sheet that was drawn.

    Args:
        path: the file, or for clusters the folder; empty if the result has no images, so that no sheet was drawn.
        text: what it shows.
        lost: images that are no longer where they were embedded from. They are grey on the sheet.
    """

    path: str
    text: str
    lost: list[str] = field(default_factory=list)


def sheet(
    result: SheetSource,
    store: StoreSource,
    path: str | os.PathLike[str],
    *,
    against: StoreSource | None = None,
    images: int = 20,
    overwrite: bool = False,
) -> ContactSheet:
    """Draw the images of a result as a contact sheet.

    Args:
        result: what `search`, `dedup`, `leaks`, `outliers` or `cluster` gave back; of `cluster` the finest level is drawn.
        store: the file that was searched.
        path: the PNG or JPEG file; for clusters a folder, which gets a sheet of each cluster and one of all.
        against: the other file of `leaks`.
        images: how many outliers are drawn, 200 at most.
        overwrite: replace an existing sheet.

    Raises:
        StoreError: the store cannot be read.
        ConfigError: a result of another kind, or the sheet exists or cannot be written.
    """
    with opened(store) as found, contextlib.ExitStack() as stack:
        result = result.levels[0] if isinstance(result, Clustering) else result
        if isinstance(result, Clusters):
            return _draw_clusters(result, found, os.fspath(path), overwrite)
        check_picture_target(path, "contact sheet", overwrite=overwrite)
        content = _content_of(result, found, against, images, stack)
        if not content.strips:
            return ContactSheet("", content.text)
        return ContactSheet(os.fspath(path), content.text, draw_strips(content.strips, path, columns=content.columns, overwrite=overwrite))


class _Content(NamedTuple):
    strips: list[Strip]
    text: str
    columns: int = COLUMNS


def _content_of(result: Any, store: Store, against: StoreSource | None, images: int, stack: contextlib.ExitStack) -> _Content:
    """The strips of a result of any kind; other stores that they show are opened in `stack`."""
    if isinstance(result, DedupResult):
        return _duplicates(result, store)
    if isinstance(result, Outliers):
        return _outliers(result, store, images)
    results: list[Any] = [result] if isinstance(result, SearchResult) else list(result)
    if results and all(isinstance(each, SearchResult) for each in results):
        return _queries(results, store, lambda source: stack.enter_context(opened(source)))
    if against is not None and all(isinstance(each, Leak) for each in results):
        return _leaks(results, store, stack.enter_context(opened(against)))
    raise ConfigError("a contact sheet shows results of `search`, `dedup`, `leaks`, `outliers` or `cluster`")


def _queries(results: list[SearchResult], store: Store, open_source: Callable[[str], Store]) -> _Content:
    shown, stores, strips = results[:_MAX_STRIPS], {store.path: store}, []
    for result in shown:
        if result.source and result.source not in stores:
            stores[result.source] = open_source(result.source)
        home = stores.get(result.source)
        tile = file_tile(result.query, "query") if home is None else stored_tile(home, result.query, "query")
        tiles = [tile._replace(is_framed=True), *(stored_tile(store, hit.path, f"{hit.similarity:.4f}") for hit in result.hits)]
        strips.append(Strip(printable(result.query), tiles))
    first = "the first " if len(shown) < len(results) else ""
    columns = min(max(len(strip.tiles) for strip in strips), _MAX_COLUMNS)
    return _Content(strips, f"{first}{_count(len(shown), 'query', 'queries')}", columns)


def _duplicates(result: DedupResult, store: Store) -> _Content:
    strips = []
    for number, group in enumerate(result.groups[:_MAX_STRIPS], 1):
        tiles = [
            stored_tile(store, path, "keep" if similarity is None else f"drop {similarity:.4f}", is_framed=similarity is None)
            for path, similarity in group.in_order()[:_MAX_GROUP]
        ]
        shown = f", the first {_MAX_GROUP} shown" if len(group) > _MAX_GROUP else ""
        strips.append(Strip(f"group {number}: {len(group):,} images, {len(group.kept):,} kept{shown}", tiles))
    return _Content(strips, _count(len(strips), "group", "groups") if strips else "there are no groups")


def _leaks(leaks: list[Leak], store: Store, other: Store) -> _Content:
    strips = [
        Strip(f"in both: {leak.similarity:.4f}", [stored_tile(store, leak.path, "here"), stored_tile(other, leak.other, "there")])
        for leak in leaks[:_MAX_STRIPS]
    ]
    return _Content(strips, _count(len(strips), "shared image", "shared images") if strips else "no image is shared")


def _outliers(result: Outliers, store: Store, images: int) -> _Content:
    tiles = [stored_tile(store, line.path, f"{line.isolation:.3f}") for line in result.first(min(images, _MAX_OUTLIERS))]
    title = f"{len(tiles):,} of {len(result):,} images, the most isolated first"
    return _Content([Strip(title, tiles)], title)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _draw_clusters(level: Clusters, store: Store, folder: str, overwrite: bool) -> ContactSheet:
    """Draw a sheet for each cluster, with its most and its least typical images, and one of all clusters."""
    with writing(folder, "folder"):
        os.makedirs(folder, exist_ok=True)
    check_target(os.path.join(folder, OVERVIEW), "contact sheet", overwrite=overwrite)
    paths = store.paths

    def tiles(rows: NDArray[np.int64]) -> list[Tile]:
        return [stored_tile(store, paths[row], f"{level.similarity[row]:.3f}") for row in rows.tolist()]

    overview, lost = [], list[str]()
    for number in range(len(level.centres)):
        rows = level.rows(number)
        middle, edge = tiles(rows[:_MAX_CLUSTER]), tiles(rows[_MAX_CLUSTER:][-COLUMNS:])
        strips = [Strip(f"cluster {number}: {len(rows):,} images, most typical first", middle)]
        if edge:
            strips.append(Strip("least typical", edge))
        lost += draw_strips(strips, os.path.join(folder, f"cluster-{number:04}.png"), overwrite=True)
        if number < _MAX_STRIPS:
            overview.append(Strip(f"cluster {number}: {len(rows):,} images", middle[:COLUMNS]))
    draw_strips(overview, os.path.join(folder, OVERVIEW), overwrite=True)
    _remove_old_sheets(folder, len(level.centres))
    return ContactSheet(folder, f"each of {len(level.centres):,} clusters, and `{OVERVIEW}` of all", lost)


def _remove_old_sheets(folder: str, clusters: int) -> None:
    """Remove sheets of an earlier run with more clusters, which would be taken for sheets of this run."""
    with writing(folder, "folder"):
        for name in os.listdir(folder):
            found = _CLUSTER_SHEET.fullmatch(name)
            if found and int(found[1]) >= clusters:
                os.unlink(os.path.join(folder, name))
