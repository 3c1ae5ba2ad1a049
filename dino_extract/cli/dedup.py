"""`dedup`: near-duplicates in a file, or images that two files share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dino_extract.cli.options import AsJson, Dataset, Seed, Sheet, note_lost, print_json, say, write_list
from dino_extract.errors import ConfigError
from dino_extract.names import quoted

if TYPE_CHECKING:
    from dino_extract.analysis.dedup import Calibration, DedupResult, DuplicateGroup, Leak
    from dino_extract.store import Store

EXAMPLES = """Examples:

  dino-extract dedup photos.h5 --sheet groups.png --drop drop.txt

  dino-extract dedup test.h5 --against train.h5      test images that are in the training set

  dino-extract dedup photos.h5 --calibrate 200       what each threshold finds, on altered copies of your own images"""

MAX_SHEET_GROUPS = 40
MAX_GROUP_SHOWN = 16  # images of one group
LARGE_GROUP = 0.1  # of all images: hardly all the same
MAX_LISTED = 20


def dedup(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="Images to look through.")],
    against: Annotated[str | None, typer.Option(metavar="OTHER.h5", help="Find images of FILE.h5 that OTHER.h5 has too.")] = None,
    threshold: Annotated[float, typer.Option(help="Cosine from which two images are the same.")] = 0.95,
    keep_list: Annotated[str | None, typer.Option("--keep", metavar="FILE.txt", help="Write the paths to keep, one a line.")] = None,
    drop_list: Annotated[str | None, typer.Option("--drop", metavar="FILE.txt", help="Write the paths to drop, one a line.")] = None,
    calibrate: Annotated[
        int | None, typer.Option(metavar="N", help="Measure thresholds on altered copies of N images of the file instead.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every pair, however long it takes.")] = False,
    dataset: Dataset = "features",
    seed: Seed = 0,
    sheet: Sheet = None,
    as_json: AsJson = False,
) -> None:
    """Find near-duplicate images.

    Images with a cosine above the threshold are joined into groups. Of each group the image with the most pixels is kept and those like it
    are dropped, then the next of the rest, until each is kept or like a kept one. Nothing is deleted: the lists say what to do.
    """
    from dino_extract.analysis import dedup as analysis  # loads torch, which `--help` must not wait for, which `--help` must not wait for
    from dino_extract.analysis.vectors.stored import opened
    from dino_extract.analysis.writing import require_picture_place, require_place

    options = {"threshold": threshold, "dataset": dataset, "seed": seed}
    if calibrate is not None and (against or keep_list or drop_list or sheet):
        raise ConfigError("`--calibrate` only measures: it takes no `--against`, `--keep`, `--drop` or `--sheet`")
    if keep_list is not None and drop_list is not None and os.path.realpath(keep_list) == os.path.realpath(drop_list):
        raise ConfigError(f"`--keep` and `--drop` name one file, `{keep_list}`")
    for path in (keep_list, drop_list):
        require_place(path, "list")
    require_picture_place(sheet, "contact sheet")
    with opened(file) as store:
        if calibrate is not None:
            _print_calibration(_calibrate(store, calibrate, dataset, seed), file, as_json)
            return
        if against is not None:
            with opened(against) as other:
                found = analysis.leaks(store, other, exact=exact or None, **options)  # type: ignore[arg-type]  # of several types
                if sheet:
                    _draw_leaks(store, other, found, sheet)
            drop = sorted({leak.path for leak in found})
            _print_leaks(found, len(store), against, as_json)
        else:
            result = analysis.dedup(store, exact=exact or None, **options)  # type: ignore[arg-type]  # of several types
            if sheet:
                _draw_groups(store, result, sheet)
            drop = result.drop
            _print_groups(result, as_json)
        if drop_list:
            write_list(drop_list, drop)
        if keep_list:
            dropped = set(drop)
            write_list(keep_list, [path for path in store.paths if path not in dropped])


def _print_groups(result: DedupResult, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(result), "drop": result.drop})
        return
    print(f"{result.images:,} images: {len(result.groups):,} groups, {len(result.drop):,} images to drop (cosine >= {result.threshold})")
    print("threshold  groups  to drop")
    for step in result.ladder:
        print(f"{step.threshold:9}  {step.groups:6,}  {step.dropped:7,}")
    for group in result.groups[:MAX_LISTED]:
        print()
        for path, similarity in _in_order(group)[:MAX_GROUP_SHOWN]:
            print(f"keep          {path}" if similarity is None else f"drop  {similarity:.4f}  {path}")
        if len(group) > MAX_GROUP_SHOWN:
            print(f"... {len(group) - MAX_GROUP_SHOWN:,} more of this group")
    if len(result.groups) > MAX_LISTED or any(len(group) > MAX_GROUP_SHOWN for group in result.groups):
        say("note: not all is listed here; `--json` or `--drop FILE.txt` has everything")
    if result.groups and len(result.groups[0]) > max(MAX_GROUP_SHOWN, LARGE_GROUP * result.images):
        share = len(result.groups[0]) / result.images
        say(f"note: one group holds {share:.0%} of all images, so the threshold is probably too low; `--calibrate 200` measures thresholds")


def _in_order(group: DuplicateGroup) -> list[tuple[str, float | None]]:
    """The images of a group, each kept one before those that go for it, with their similarity to it."""
    return [image for kept in group.kept for image in [(kept.path, None), *zip(kept.drop, kept.similarity, strict=True)]]


def _print_leaks(found: Sequence[Leak], num_images: int, against: str, as_json: bool) -> None:
    if as_json:
        print_json([asdict(leak) for leak in found])
        return
    print(f"{len(found):,} of {num_images:,} images are in {against} too")
    for leak in found[:MAX_LISTED]:
        print(f"{leak.similarity:.4f}  {leak.path}  =  {leak.other}")
    if len(found) > MAX_LISTED:
        say(f"note: {len(found) - MAX_LISTED:,} more; `--json` or `--drop FILE.txt` has them all")


def _draw_groups(store: Store, result: DedupResult, sheet: str) -> None:
    from dino_extract.pictures.sheets import Strip, draw_strips, stored_tile

    strips = []
    for number, group in enumerate(result.groups[:MAX_SHEET_GROUPS], 1):
        tiles = [
            stored_tile(store, path, "keep" if similarity is None else f"drop {similarity:.4f}", is_framed=similarity is None)
            for path, similarity in _in_order(group)[:MAX_GROUP_SHOWN]
        ]
        shown = f", the first {MAX_GROUP_SHOWN} shown" if len(group) > MAX_GROUP_SHOWN else ""
        strips.append(Strip(f"group {number}: {len(group):,} images, {len(group.kept):,} kept{shown}", tiles))
    if not strips:
        say("no contact sheet: there are no groups")
        return
    note_lost(draw_strips(strips, sheet))
    say(f"contact sheet of {len(strips)} groups: {sheet}")


def _draw_leaks(store: Store, other: Store, found: Sequence[Leak], sheet: str) -> None:
    from dino_extract.pictures.sheets import Strip, draw_strips, stored_tile

    if not found:
        say("no contact sheet: nothing is shared")
        return
    strips = [
        Strip(f"in both: {leak.similarity:.4f}", [stored_tile(store, leak.path, "here"), stored_tile(other, leak.other, "there")])
        for leak in found[:MAX_SHEET_GROUPS]
    ]
    note_lost(draw_strips(strips, sheet))
    say(f"contact sheet: {sheet}")


def _calibrate(store: Store, count: int, dataset: str, seed: int) -> list[Calibration]:
    """Alter copies of some images of the store, embed them as the store was, and see which thresholds find them."""
    import numpy as np

    from dino_extract.analysis.dedup import calibrate
    from dino_extract.analysis.vectors.stored import stored_vectors
    from dino_extract.pictures.altered import ALTERATIONS, altered_vectors

    if count < 1:
        raise ConfigError(f"`--calibrate` needs at least 1 image, got {count}")
    if dataset != "features":
        raise ConfigError(f"altered copies are compared by `features`, not by `{dataset}`")
    vectors = stored_vectors(store, dataset)
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:count])
    say(f"{len(rows):,} of {len(vectors):,} images, a copy of each altered in {len(ALTERATIONS)} ways and embedded:")
    for kind, (words, _) in ALTERATIONS.items():
        say(f"  {kind:9}  {words}")
    found, copies = altered_vectors(store, rows)
    if len(found) < len(rows):
        say(f"note: {len(rows) - len(found):,} of them are left out, as they are gone or have changed since")
    return calibrate(vectors, found, copies)


def _print_calibration(steps: Sequence[Calibration], file: str, as_json: bool) -> None:
    if as_json:
        print_json([asdict(step) for step in steps])
        return
    kinds = list(steps[0].recall)
    print(f"{'':9}  {'copies found':{11 * len(kinds) - 2}}  images that find")
    print("threshold  " + "  ".join(f"{kind:>9}" for kind in kinds) + "  another one")
    for step in steps:
        print(f"{step.threshold:9}  " + "  ".join(f"{step.recall[kind]:9.1%}" for kind in kinds) + f"  {step.others:11.1%}")
    say(
        "The last column counts duplicates that the file has, and mistakes. Take a threshold that finds the copies that matter and\n"
        f"little else, and look at what it joins: `dino-extract dedup {quoted(file)} --threshold T --sheet groups.png`"
    )
