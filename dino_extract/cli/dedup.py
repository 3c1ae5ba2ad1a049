"""`dedup`: near-duplicates in a file, or images that two files share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

import dino_extract as dx
from dino_extract.cli.options import (
    AsJson,
    Dataset,
    Overwrite,
    Quiet,
    Seed,
    Sheet,
    Threshold,
    announce,
    check_targets,
    draw_sheet,
    print_json,
    say,
    write_list,
)
from dino_extract.errors import ConfigError
from dino_extract.names import counted, quoted

if TYPE_CHECKING:
    from dino_extract.analysis.dedup import Calibration, DedupResult, Leak

EXAMPLES = """Examples:

  dino-extract dedup photos.h5 --sheet groups.png --drop drop.txt

  dino-extract dedup test.h5 --against train.h5  # test images in the training set

  dino-extract dedup photos.h5 --calibrate 200  # what each threshold finds"""

MAX_GROUP_SHOWN = 16  # images of one group
LARGE_GROUP = 0.1  # share of all images above which a group is suspicious
MAX_LISTED = 20


def dedup(
    file: Annotated[str, typer.Argument(metavar="FILE.h5", help="The images to compare.")],
    against: Annotated[
        str | None, typer.Option(metavar="OTHER.h5", help="Find instead the images of FILE.h5 that are in OTHER.h5 too.")
    ] = None,
    threshold: Threshold = 0.95,
    keep_list: Annotated[str | None, typer.Option("--keep", metavar="FILE.txt", help="Write the paths to keep, one a line.")] = None,
    drop_list: Annotated[str | None, typer.Option("--drop", metavar="FILE.txt", help="Write the paths to drop, one a line.")] = None,
    calibrate: Annotated[
        int | None, typer.Option(metavar="N", help="Measure instead what each threshold finds, on altered copies of N images.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every pair of images, however long it takes.")] = False,
    dataset: Dataset = "features",
    seed: Seed = 0,
    sheet: Sheet = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find near-duplicate images.

    Images with a cosine above the threshold are joined into groups. Of each group the image with the most pixels is kept and its
    duplicates are dropped, and so on with the remaining images. No image is deleted: the lists say what to keep and what to drop.
    """
    targets = {"keep": keep_list, "drop": drop_list}
    if calibrate is not None:
        if against or keep_list or drop_list or sheet:
            raise ConfigError("`--calibrate` only measures: it takes no `--against`, `--keep`, `--drop` or `--sheet`")
        announce("measuring thresholds on copies of images, of {}", file, quiet=quiet)
        _print_calibration(dx.calibrate(file, calibrate, dataset=dataset, seed=seed, log=None if quiet else say), file, as_json)
        return
    _check_lists(targets, overwrite)
    check_targets({"contact sheet": sheet}, overwrite=overwrite)
    announce("comparing {}", file, quiet=quiet)
    options = {"threshold": threshold, "dataset": dataset, "exact": exact or None, "seed": seed}
    with dx.open(file) as store:
        paths = store.paths
    if against is None:
        groups = dx.dedup(file, **options)  # type: ignore[arg-type]  # options of several types
        draw_sheet(groups, file, sheet, overwrite=overwrite)
        drop = groups.drop
        _print_groups(groups, as_json)
    else:
        leaks = dx.leaks(file, against, **options)  # type: ignore[arg-type]  # options of several types
        draw_sheet(leaks, file, sheet, overwrite=overwrite, against=against)
        drop = sorted({leak.path for leak in leaks})
        _print_leaks(leaks, len(paths), against, as_json)
    _write_lists(targets, paths, drop, overwrite)


def _check_lists(targets: dict[str, str | None], overwrite: bool) -> None:
    keep, drop = targets["keep"], targets["drop"]
    if keep is not None and drop is not None and os.path.realpath(keep) == os.path.realpath(drop):
        raise ConfigError(f"`--keep` and `--drop` name one file, `{keep}`")
    for target in (keep, drop):
        check_targets({"list": target}, overwrite=overwrite)


def _write_lists(targets: dict[str, str | None], paths: Sequence[str], drop: Sequence[str], overwrite: bool) -> None:
    dropped = set(drop)
    if targets["drop"]:
        write_list(targets["drop"], drop, overwrite=overwrite)
    if targets["keep"]:
        write_list(targets["keep"], [path for path in paths if path not in dropped], overwrite=overwrite)


def _print_groups(result: DedupResult, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    groups = f"{len(result.groups):,} {'group' if len(result.groups) == 1 else 'groups'}"
    print(f"{counted(result.images, 'image')}: {groups}, {counted(len(result.drop), 'image')} to drop (cosine >= {result.threshold})")
    print("threshold  groups  to drop")
    for step in result.ladder:
        print(f"{step.threshold:9}  {step.groups:6,}  {step.dropped:7,}")
    for group in result.groups[:MAX_LISTED]:
        print()
        for path, similarity in group.in_order()[:MAX_GROUP_SHOWN]:
            print(f"keep          {path}" if similarity is None else f"drop  {similarity:.4f}  {path}")
        if len(group) > MAX_GROUP_SHOWN:
            print(f"... {len(group) - MAX_GROUP_SHOWN:,} more of this group")
    _note_groups(result)


def _note_groups(result: DedupResult) -> None:
    """Notes about groups that are not listed whole, and about a group that is suspiciously large."""
    if len(result.groups) > MAX_LISTED or any(len(group) > MAX_GROUP_SHOWN for group in result.groups):
        say("note: not all is listed here; `--json` or `--drop FILE.txt` has everything")
    if result.groups and len(result.groups[0]) > max(MAX_GROUP_SHOWN, LARGE_GROUP * result.images):
        share = len(result.groups[0]) / result.images
        say(f"note: one group holds {share:.0%} of all images, so the threshold is probably too low; `--calibrate 200` measures thresholds")


def _print_leaks(found: Sequence[Leak], num_images: int, against: str, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print(f"{len(found):,} of {counted(num_images, 'image')} are in {against} too")
    for leak in found[:MAX_LISTED]:
        print(f"{leak.similarity:.4f}  {leak.path}  =  {leak.other}")
    if len(found) > MAX_LISTED:
        say(f"note: {len(found) - MAX_LISTED:,} more; `--json` or `--drop FILE.txt` has them all")


def _print_calibration(steps: Sequence[Calibration], file: str, as_json: bool) -> None:
    if as_json:
        print_json(steps)
        return
    kinds = list(steps[0].recall)
    print(f"{'':9}  {'copies found':{11 * len(kinds) - 2}}  images that find")
    print("threshold  " + "  ".join(f"{kind:>9}" for kind in kinds) + "  another one")
    for step in steps:
        print(f"{step.threshold:9}  " + "  ".join(f"{step.recall[kind]:9.1%}" for kind in kinds) + f"  {step.others:11.1%}")
    say(
        "The last column counts duplicates that the file has, and mistakes. Choose a threshold that finds the copies that matter and\n"
        f"little else, and check which images it joins: `dino-extract dedup {quoted(file)} --threshold T --sheet groups.png`"
    )
