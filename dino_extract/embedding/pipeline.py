"""The pipeline: images of a source, decoded ahead of the model, through the engine, into the HDF5 file."""

from __future__ import annotations

import inspect
import itertools
import os
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from tqdm.auto import tqdm

from dino_extract.config import EmbedConfig, most_failures
from dino_extract.embedding.job import Forecast, Job, prepare, prepare_like
from dino_extract.embedding.recipe import HasRecord
from dino_extract.embedding.stages import EmbedResult, StageTimes
from dino_extract.engine import Engine, Ticket
from dino_extract.errors import ConfigError, DinoExtractError, SourceError
from dino_extract.images.finding import Sources
from dino_extract.images.loader import DecodedBatch
from dino_extract.images.preprocess import DeviceImages
from dino_extract.names import counted, printable, quoted
from dino_extract.status import Status
from dino_extract.store import Writer, open_store, open_writer
from dino_extract.tokens import KIND_OF

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dino_extract.config import EmbedOptions

BATCHES_IN_FLIGHT = 2  # on each device: while one is read back the next is computed, so that the model never waits

OnProgress = Callable[[int, int, int], None]  # images done, images in all, images without an embedding
CLS = KIND_OF["cls"]


def embed(
    sources: Sources,
    output: str | os.PathLike[str] | None = None,
    *,
    suffixes: str | Sequence[str] = (),
    stdin: BinaryIO | None = None,
    overwrite: bool = False,
    prune: bool = False,
    retry_failed: bool = False,
    max_failures: float | str | None = None,
    on_start: Callable[[Job], None] | None = None,
    on_progress: OnProgress | None = None,
    progress: bool | None = None,
    **options: Unpack[EmbedOptions],
) -> EmbedResult:
    """Embed images into one HDF5 file; called again, embed only what is missing or has changed.

    Args:
        sources: folders, files, globs, `.tar` or `.zip` archives; one or several.
        output: the HDF5 file; by default the source's name with `.h5` in the working directory.
        suffixes: take exactly files with this suffix or these, instead of everything that may be an image.
        stdin: binary stream from which the source `-` reads its list.
        overwrite: replace a file that was made with other options.
        prune: remove the rows of deleted images.
        retry_failed: try images again that could not be embedded.
        max_failures: more failed images than this count (an int), this share of all (a float, 0..1), or `"1%"` are an error.
        on_start: called once the images are found and the model is loaded.
        on_progress: called before the first batch and after each one.
        progress: show a progress bar; None shows one in a notebook or a terminal, unless `on_progress` is given.
        options: fields of `EmbedConfig`, such as `model="vitb14"` or `tokens="cls,patch"`.

    Raises:
        DinoExtractError: one sentence about what stands in the way; nothing already embedded is lost.
    """
    limit = most_failures(max_failures)
    job = _prepared(sources, output, suffixes, stdin, on_start, options)
    with _progress_of(progress, on_progress) as report:
        return run(job, overwrite=overwrite, prune=prune, retry_failed=retry_failed, max_failures=limit, on_progress=report)


def plan(
    sources: Sources,
    output: str | os.PathLike[str] | None = None,
    *,
    suffixes: str | Sequence[str] = (),
    stdin: BinaryIO | None = None,
    overwrite: bool = False,
    prune: bool = False,
    retry_failed: bool = False,
    on_start: Callable[[Job], None] | None = None,
    **options: Unpack[EmbedOptions],
) -> Forecast:
    """What `embed` with the same arguments would need; writes nothing.

    Raises:
        DinoExtractError: `embed` would be refused.
    """
    job = _prepared(sources, output, suffixes, stdin, on_start, options)
    return job.plan(overwrite=overwrite, retry_failed=retry_failed, prune=prune)


def _prepared(
    sources: Sources,
    output: str | os.PathLike[str] | None,
    suffixes: str | Sequence[str],
    stdin: BinaryIO | None,
    on_start: Callable[[Job], None] | None,
    options: EmbedOptions,
) -> Job:
    several = [sources] if isinstance(sources, (str, bytes, os.PathLike)) else sources
    job = prepare(
        [os.fsdecode(source) for source in several],
        output,
        EmbedConfig.of(options, inspect.signature(embed).parameters),
        suffixes=suffixes,
        stdin=stdin,
    )
    if on_start is not None:
        on_start(job)
    return job


@contextmanager
def _progress_of(progress: bool | None, on_progress: OnProgress | None) -> Iterator[OnProgress | None]:
    """The function that a run reports its progress to: the caller's, that of a new bar, or both."""
    if progress is None:
        progress = on_progress is None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if not progress:
        yield on_progress
        return
    with tqdm(unit=" images", dynamic_ncols=True, smoothing=0.1) as bar:

        def show(done: int, total: int, failed: int) -> None:
            if bar.total is None:
                bar.reset(total)
                bar.initial = done
            bar.update(done - bar.n)
            if failed:
                bar.set_postfix_str(f"{failed:,} failed", refresh=False)
            if on_progress is not None:
                on_progress(done, total, failed)

        yield show


def run(
    job: Job,
    *,
    overwrite: bool = False,
    prune: bool = False,
    retry_failed: bool = False,
    max_failures: float | None = None,
    on_progress: OnProgress | None = None,
    engines: Sequence[Engine] | None = None,
) -> EmbedResult:
    """Do a job from `prepare` or `make_job`.

    Args:
        job: the work.
        overwrite: as for `embed`.
        prune: as for `embed`.
        retry_failed: as for `embed`.
        max_failures: as for `embed`, as a number.
        on_progress: as for `embed`.
        engines: the models to use, as from `job.recipe.engines()`; by default made for this run, which uses up the recipe's weights.

    Raises:
        DinoExtractError: as from `embed`.
    """
    started = time.monotonic()
    waited = StageTimes()
    with open_writer(job.output, job.row_table(), job.layout, overwrite=overwrite, prune=prune, retry_failed=retry_failed) as writer:
        embedded = 0
        if on_progress is not None:
            on_progress(writer.reused, writer.total, writer.failed)
        with closing(embedded_batches(job, _manifest_rows(job, writer), waited, engines)) as batches:  # ends the decoders on errors too
            for batch, arrays in batches:
                rows = writer.pending[embedded : embedded + len(batch.rows)]
                with waited.waiting("write"):
                    writer.write(rows, arrays, status=batch.status, errors=batch.errors, image_size=batch.image_size)
                embedded += len(rows)
                _check_failures(writer, max_failures)
                if on_progress is not None:
                    on_progress(writer.reused + embedded, writer.total, writer.failed)
        with waited.waiting("write"):
            writer.finish()
    return EmbedResult(
        path=job.output,
        total=writer.total,
        embedded=embedded,
        reused=writer.reused,
        failed=writer.failed,
        first_failure=_first_failure(job.output) if writer.failed else None,
        gone=writer.total - len(job.manifest),
        dropped=writer.dropped,
        seconds=round(time.monotonic() - started, 3),
        waited_s=waited.as_dict(),
    )


def embed_like(
    store: HasRecord | str | os.PathLike[str],
    sources: Sources,
    *,
    on_failure: Callable[[str, str], None] | None = None,
    **changes: Unpack[EmbedOptions],
) -> tuple[list[str], np.ndarray]:
    """Paths and CLS embeddings (n, D) float32 of other images, made exactly as those of a file.

    Args:
        store: the file, opened or by its path, or anything else that records how it was made.
        sources: folders, files, globs, `.tar` or `.zip` archives, one or several; images that cannot be read are left out. Paths lead to
            the images from the working directory.
        on_failure: called with the path and the reason for each image that is left out.
        changes: fields of `EmbedConfig` to set differently from the file, such as `weights` where the checkpoint has moved.

    Raises:
        ConfigError: the file has no CLS tokens.
        StoreError: the weights found now are not those the file was made with.
        SourceError: none of the images can be read.
    """
    if isinstance(store, (str, os.PathLike)):
        with open_store(store) as opened:
            return embed_like(opened, sources, on_failure=on_failure, **changes)
    if CLS.name not in store.attrs["tokens"].split(","):
        message = f"`{store.path}` has no CLS tokens to compare with, only {store.attrs['tokens']}"
        raise ConfigError(message, hint="embed its images with `--tokens cls`, or embed the others into a file and compare that")
    job = prepare_like(store, sources, **changes)
    folder = "" if job.manifest.root == os.getcwdb() else os.fsdecode(job.manifest.root)
    paths: list[str] = []
    features: list[np.ndarray] = []
    errors: list[tuple[str, str]] = []
    for batch, arrays in embedded_batches(job, np.arange(len(job.manifest))):
        is_good = batch.status == Status.OK
        names = [os.path.join(folder, os.fsdecode(job.manifest.keys[row])) for row in batch.rows.tolist()]
        paths += [name for name, good in zip(names, is_good, strict=True) if good]
        features.append(arrays[CLS.dataset][is_good].astype(np.float32))
        errors += [(name, error) for name, error, good in zip(names, batch.errors, is_good, strict=True) if not good]
    if not paths:
        raise SourceError(f"none of the {len(job.manifest):,} images can be read, the first because of `{errors[0][1]}`")
    for name, error in errors:
        if on_failure is not None:
            on_failure(name, error)
    return paths, np.concatenate(features)


def embedded_batches(
    job: Job, rows: np.ndarray, waited: StageTimes | None = None, engines: Sequence[Engine] | None = None
) -> Generator[tuple[DecodedBatch, dict[str, Any]], None, None]:
    """Each decoded batch with its token arrays by dataset name.

    Args:
        job: the recipe and the images.
        rows: (n,) int64 rows of the manifest, in this order.
        waited: the time spent waiting for each stage is added here. It is divided between reading and decoding after the last batch.
        engines: as for `run`.
    """
    if not len(rows):
        return
    waited = StageTimes() if waited is None else waited
    settings = job.settings
    engine_of_batch = itertools.cycle(job.recipe.engines(release=True) if engines is None else engines)
    in_flight: deque[tuple[DecodedBatch, Callable[[], dict[str, Any]]]] = deque()

    def finish_oldest() -> tuple[DecodedBatch, dict[str, Any]]:
        batch, result = in_flight.popleft()
        with waited.waiting("model"):
            arrays = result()
        batch.settle()
        return batch, arrays

    with job.loader(rows) as loader:
        stats, batches = loader.stats, iter(loader)
        while True:
            with waited.waiting("decode"):
                batch = next(batches, None)
            if batch is None:
                waited.divide_input(stats.read_s, stats.decode_s)
                break
            engine = next(engine_of_batch)
            if isinstance(batch.pixels, np.ndarray):
                in_flight.append((batch, engine.submit(batch.pixels).result))
            elif settings.resizes_on_device:
                in_flight.append((batch, engine.submit(DeviceImages(batch.pixels, batch.is_resized, settings.preprocess)).result))
            else:
                in_flight.append((batch, _submit_native(job, engine, batch)))
            if len(in_flight) > BATCHES_IN_FLIGHT * len(settings.devices):
                yield finish_oldest()
        while in_flight:
            yield finish_oldest()


def _submit_native(job: Job, engine: Engine, batch: DecodedBatch) -> Callable[[], dict[str, Any]]:
    """Start on a batch of one image in its own shape, for the arrays; patches are flat, (N, D), because each image has another grid."""
    (image,) = batch.pixels
    assert isinstance(image, np.ndarray), "`decode=device` is refused for `native`"
    row = int(batch.rows[0])
    patch = job.settings.preprocess.patch
    if (
        job.grid_size is not None
        and batch.status[0] == Status.OK
        and (image.shape[0] // patch, image.shape[1] // patch) != tuple(job.grid_size[row])
    ):
        batch.status[0], batch.errors[0] = Status.VANISHED, "read: the image was replaced during the run"
    if batch.status[0] == Status.OK:
        return partial(_native_arrays, job, engine.submit(image[None]))
    num_patches = 0 if job.grid_size is None else int(job.grid_size[row].prod())
    zeros = {
        dataset.name: [np.zeros((num_patches, *dataset.shape), dataset.dtype)]
        if dataset.is_ragged
        else np.zeros((1, *dataset.shape), dataset.dtype)
        for dataset in job.layout.datasets
    }
    return lambda: zeros


def _native_arrays(job: Job, under_way: Ticket) -> dict[str, Any]:
    arrays = under_way.result()
    return {
        dataset.name: list(arrays[dataset.name].reshape(1, -1, *dataset.shape)) if dataset.is_ragged else arrays[dataset.name]
        for dataset in job.layout.datasets
    }


def _manifest_rows(job: Job, writer: Writer) -> np.ndarray:
    """Rows of the manifest that are pending; the file may have more rows, of deleted images."""
    keys = job.manifest.keys
    if len(keys) == writer.total:
        return writer.pending
    return np.array([bisect_left(keys, writer.keys[row]) for row in writer.pending.tolist()], np.int64)


def _first_failure(path: str) -> str | None:
    """Path and reason of the first row of a store without an embedding."""
    with open_store(path) as store:
        failure = next(iter(store.failures), None)
    return failure and f"`{printable(os.fsencode(failure.path))}`, {failure.error}"


def _check_failures(writer: Writer, limit: float | None) -> None:
    if limit is None:
        return
    most = limit * writer.total if isinstance(limit, float) else limit
    if writer.failed > most:
        message = f"{writer.failed:,} of {counted(writer.total, 'image')} could not be embedded, more than `max_failures` allows"
        listing = f"dino-extract info {quoted(writer.part_path)} --failures"  # the finished file, if there is one, is older
        raise DinoExtractError(message, hint=f"`{listing}` lists them; the rest continues without the limit")
