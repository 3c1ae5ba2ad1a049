"""A job of `embed`: which images, by which recipe, into which file; resolved before any work."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from dino_extract.config import SIGNATURE, EmbedConfig, parse_shard
from dino_extract.embedding.recipe import HasRecord, Recipe, Settings, recipe_like, recipe_of
from dino_extract.engine import allocator_for
from dino_extract.errors import SourceError
from dino_extract.files import require_folder
from dino_extract.images.finding import Sources, find_images
from dino_extract.images.loader import Loader, default_workers, scan_image_sizes
from dino_extract.images.manifest import Manifest, manifest_of, resolve
from dino_extract.images.preprocess import Preprocess
from dino_extract.names import counted, path_as_text, path_from_text, printable
from dino_extract.results import Result, shown
from dino_extract.store import Layout, RowTable, Store, count_pending
from dino_extract.weights import RANDOM_WEIGHTS_WARNING

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dino_extract.config import EmbedOptions

PROBE_BATCHES = 3  # for the estimate of `--dry-run`: the first warms up, the others are timed
PROBE_IMAGES = 8  # images spread over the job, which are read and decoded for that estimate


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A recipe, the images and the target file: everything that a run needs; made by `prepare` or `make_job`.

    Args:
        recipe: model and settings.
        manifest: the images.
        output: path of the HDF5 file.
        layout: its datasets and attributes.
        grid_size: (N, 2) int32 patch grid of each image, if these differ and patches are stored.
    """

    recipe: Recipe
    manifest: Manifest
    output: str
    layout: Layout
    grid_size: np.ndarray | None

    @property
    def settings(self) -> Settings:
        """The settings of the recipe."""
        return self.recipe.settings

    def row_table(self) -> RowTable:
        """The images as the store wants them."""
        manifest = self.manifest
        return RowTable(manifest.keys, manifest.file_size, manifest.file_mtime_ns, self.grid_size, manifest.unread)

    def loader(self, rows: np.ndarray) -> Loader:
        """Decoded batches of the given rows (n,) of the manifest, in their order."""
        settings = self.settings
        batches_ahead = 2 if settings.resizes_on_device else 4  # decoded images are larger than resized ones
        return Loader(
            self.manifest,
            rows,
            settings.preprocess,
            resizes=not settings.resizes_on_device,
            batch=settings.batch_size,
            workers=settings.config.workers,
            prefetch_batches=batches_ahead * len(settings.devices),
            timeout_s=settings.config.decode_timeout_s,
            allocate=allocator_for(settings.device),
        )

    def nbytes(self) -> int:
        """Size of the finished file, if every row is new."""
        patches = 0 if self.grid_size is None else int(self.grid_size.astype(np.int64).prod(axis=1).sum())
        return self.layout.nbytes(len(self.manifest), max(map(len, self.manifest.keys), default=1), patches)

    def describe(self) -> list[str]:
        """What the run is about to do, for people."""
        settings, config, model = self.settings, self.settings.config, self.settings.model
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.manifest.skipped.items()))
        shard = f" of shard {config.shard}" if config.shard else ""
        lines = [f"{counted(len(self.manifest), 'image')}{shard}" + (f" (left out: {skipped})" if skipped else "")]
        lines.append(
            f"{model.name} ({model.weights_source}) on {', '.join(settings.devices)} in {settings.dtype}, {config.preprocess} "
            f"{settings.preprocess.height}x{settings.preprocess.width}, batch {settings.batch_size} -> {self.output}"
        )
        lines.extend(f"note: {note}" for note in model.notes)
        is_alone = settings.device.type == "cuda" and len(settings.devices) == 1 and config.shard is None
        if is_alone and (num_gpus := torch.cuda.device_count()) > 1:
            lines.append(f"note: one of {num_gpus} GPUs is used; `--device all` uses all")
        if config.random_weights is not None:
            lines.append(f"warning: {RANDOM_WEIGHTS_WARNING}")
        return lines

    def plan(self, *, overwrite: bool = False, retry_failed: bool = False, prune: bool = False) -> Forecast:
        """What a run with these arguments would need; decodes a few images and runs the model on blank ones to estimate the time.

        Raises:
            StoreError: such a run would be refused, because of the file that is there, or because the disk has no room.
        """
        rows, pending = count_pending(
            self.output, self.row_table(), self.layout, overwrite=overwrite, retry_failed=retry_failed, prune=prune
        )
        settings = self.settings
        model_s = self._batch_seconds() * pending / settings.batch_size / len(settings.devices) if pending else 0.0
        decode_s = self._decoder_seconds() * pending / (settings.config.workers or default_workers()) if pending else 0.0
        # On a CPU both use the same cores, so their times add up.
        seconds = model_s + decode_s if settings.device.type == "cpu" else max(model_s, decode_s)
        free = shutil.disk_usage(os.path.dirname(os.path.realpath(self.output))).free
        return Forecast(
            self.output, len(self.manifest), rows, pending, self.nbytes(), free, *(round(each, 1) for each in (seconds, model_s, decode_s))
        )

    def _batch_seconds(self) -> float:
        engine, pixels = self.recipe.engine(), self.settings.preprocess
        blank = np.zeros((self.settings.batch_size, pixels.height, pixels.width, 3), np.uint8)
        times = []
        for _ in range(PROBE_BATCHES):
            start = time.perf_counter()
            engine(blank)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def _decoder_seconds(self) -> float:
        """Seconds that one decoder process needs for an image."""
        rows = np.unique(np.linspace(0, len(self.manifest) - 1, PROBE_IMAGES).astype(np.int64))
        with self.loader(rows) as loader:
            for _ in loader:
                pass  # only the loader's own measurement is needed
        return (loader.stats.read_s + loader.stats.decode_s) / len(rows)


@dataclass(frozen=True, repr=False)
class Forecast(Result):
    """What a run would need, for `--dry-run`.

    Args:
        path: the HDF5 file.
        images: number of images found.
        rows: rows of the file, with those of deleted images.
        pending: rows to embed; the others are in the file already.
        nbytes: size in bytes of a file of all images found.
        free_bytes: free bytes on its disk.
        seconds: estimated time of the run.
        model_seconds: the model's part of it.
        decode_seconds: the decoder processes' part, with reading; on a GPU they work at the same time as the model.
    """

    path: str
    images: int
    rows: int
    pending: int
    nbytes: int
    free_bytes: int
    seconds: float
    model_seconds: float
    decode_seconds: float

    def summary(self) -> str:
        """Path, counts and time."""
        return f"{shown(self.path)}, {self.pending:,} of {counted(self.rows, 'row')} to embed, about {self.seconds:,.0f} s"

    def text(self) -> str:
        """The plan for people."""
        return (
            f"{counted(self.images, 'image')} -> {self.path}, {self.rows - self.pending:,} rows kept"
            + (f" ({self.rows - self.images:,} of deleted images)" if self.rows > self.images else "")
            + f", {self.pending:,} to embed, "
            f"{self.nbytes:,} bytes ({self.free_bytes:,} free), about {self.seconds:,.0f} s "
            f"(model {self.model_seconds:,.0f} s, reading and decoding {self.decode_seconds:,.0f} s)"
        )


def prepare(
    sources: Sequence[str],
    output: str | os.PathLike[str] | None,
    config: EmbedConfig,
    *,
    suffixes: Sequence[str] = (),
    stdin: BinaryIO | None = None,
) -> Job:
    """Find the images, load the model and lay out the file, without writing anything.

    Args:
        sources: as for `find_images`.
        output: the HDF5 file, or None for a name made from the source's.
        config: all options.
        suffixes: as for `find_images`.
        stdin: where the source `-` reads its list from.

    Raises:
        DinoExtractError: something about the sources, the model or the options does not fit.
    """
    if output is not None:
        path = os.fspath(output)
    else:
        path = _default_output(sources, config.shard) if sources else ""  # `find_images` refuses to work without a source
    require_folder(path)
    manifest = find_images(sources, suffixes=suffixes, stdin=stdin, leave_out=path)
    if config.shard is not None:
        manifest = manifest.shard(*parse_shard(config.shard))
    return make_job(recipe_of(config, len(manifest)), manifest, path)


def prepare_like(store: HasRecord, sources: Sources, **changes: Unpack[EmbedOptions]) -> Job:
    """A job that embeds other images exactly as those of a file were embedded; it is not meant to be written to a file.

    Args:
        store: as for `recipe_like`, as are the errors.
        sources: as for `find_images`.
        changes: as for `recipe_like`.
    """
    manifest = find_images(sources)
    return make_job(recipe_like(store, len(manifest), **changes), manifest, store.path)


def prepare_again(store: Store, rows: Sequence[int], **changes: Unpack[EmbedOptions]) -> Job | None:
    """A job that embeds images of a file again; None if all of them were deleted or changed.

    Args:
        store: the file.
        rows: rows of embedded images, ascending; images that were deleted or changed are left out of the job's manifest.
        changes: as for `recipe_like`.
    """
    root = path_from_text(store.attrs["root"])
    paths, sizes, times = store.paths, store.file_size, store.file_mtime_ns
    found = []
    for row in rows:
        with contextlib.suppress(SourceError):  # deleted or changed: the manifest has the images that were found
            found.append(resolve(root, os.fsencode(paths[row]), stamp=(int(sizes[row]), int(times[row]))))
    return make_job(recipe_like(store, len(found), **changes), manifest_of(root, found), store.path) if found else None


def make_job(recipe: Recipe, manifest: Manifest, output: str) -> Job:
    """The job that embeds the images of a manifest by a recipe into a file; `run` does it.

    Args:
        recipe: from `recipe_of`, or from `load_recipe` where another process has resolved the settings.
        manifest: the images.
        output: the HDF5 file.
    """
    settings = recipe.settings
    config = settings.config
    attrs = settings.record() | {
        "root": path_as_text(manifest.root),
        "sources": json.dumps([printable(source) for source in manifest.sources]),
    }
    if config.shard is not None:
        attrs["shard"] = config.shard
    layout = Layout(settings.datasets(), attrs, (*SIGNATURE, "shard"))
    grids = _native_grids(config, manifest, settings.preprocess) if layout.is_ragged else None
    return Job(recipe=recipe, manifest=manifest, output=output, layout=layout, grid_size=grids)


def _native_grids(config: EmbedConfig, manifest: Manifest, preprocess: Preprocess) -> np.ndarray:
    """Patch grid (N, 2) int32 of every image from its header, (0, 0) where that cannot be read."""
    sizes = scan_image_sizes(manifest, preprocess, workers=config.workers, timeout_s=config.decode_timeout_s)
    return np.array([preprocess.native_grid(*size) if min(size) > 0 else (0, 0) for size in sizes.tolist()], np.int32)


def _default_output(sources: Sequence[str], shard: str | None) -> str:
    source = os.fsdecode(sources[0])
    is_pattern = glob.has_magic(source) and not os.path.lexists(source)
    if len(sources) != 1 or source.startswith("-") or is_pattern:
        raise SourceError("a pattern, a list or several sources need a name for the file", hint="give it with `-o FILE.h5`")
    name = os.path.basename(os.path.abspath(source)) or "embeddings"
    stem = os.path.splitext(name)[0] if os.path.isfile(source) else name
    return stem + (".h5" if shard is None else ".{}-of-{}.h5".format(*parse_shard(shard)))
