"""How fast each stage of embedding is on this machine, how fast they are together, and what would make that faster."""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dino_extract.config import EmbedConfig
from dino_extract.embedding.job import Job, make_job, prepare
from dino_extract.embedding.pipeline import run
from dino_extract.embedding.stages import REMEDIES
from dino_extract.engine import Engine, allocator_for, to_device
from dino_extract.engine.streams import start_pool
from dino_extract.errors import ConfigError
from dino_extract.images.containers import ImageError
from dino_extract.images.pixels import decoded_image
from dino_extract.images.preprocess import DeviceImages, Preprocess, preprocess_image
from dino_extract.images.reading import read_image_bytes
from dino_extract.results import Result
from dino_extract.store import RowTable, open_writer

MODEL_SECONDS = 3.0  # long enough for a few batches of a small model on a slow machine
RESIZE_SECONDS = 1.0  # likewise, for resizing on the device
IN_FLIGHT = 3  # batches under way in the engine, so that it never waits for the host
PEAK_SECONDS = 1.0
PEAK_WINDOWS = 5  # of that time, of which the fastest counts: a ceiling must not sink because something else ran for a moment
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # matrices large enough to reach the peak, small enough to take milliseconds

_BOUND_BY = {"read": "reading", "decode": "decoding", "resize": "resizing", "model": "the model", "write": "writing"}


@dataclass(frozen=True)
class Stage:
    """The speed of one stage with nothing else running.

    Args:
        images: how many it was measured on.
        seconds: wall time for them.
        images_per_s: on one core for reading, decoding and resizing by Pillow; on the whole device for the others.
    """

    images: int
    seconds: float
    images_per_s: float


@dataclass(frozen=True, repr=False)
class BenchmarkReport(Result):
    """What a benchmark found.

    Args:
        model: name of the model.
        device: where it ran.
        dtype: of the matrix products.
        cores: CPU cores in use.
        batch_size: images in one batch of the model.
        attention: the form of attention that was chosen.
        compiled: whether torch.compile made the network.
        resize: where small images are resized: `host`, by the decoder processes, or `device`, on the GPU.
        stages: read, decode, resize, model, write.
        whole: the whole run with everything at once, from the first image read to the file under its name.
        possible_images_per_s: what the stages would allow if they overlapped perfectly.
        peak_gflops: measured rate of large matrix products in `dtype` on the device, in GFLOP/s.
        model_gflops: what the model reached alone; None for a model whose work is not known.
        bound: the stage that takes most of the scarcest resource.
        advice: what would help, in a sentence.
    """

    model: str
    device: str
    dtype: str
    cores: int
    batch_size: int
    attention: str
    compiled: bool
    resize: str
    stages: dict[str, Stage]
    whole: Stage
    possible_images_per_s: float
    peak_gflops: float
    model_gflops: float | None
    bound: str
    advice: str

    def summary(self) -> str:
        """Model, device and speed."""
        return f"{self.model} on {self.device} in {self.dtype}, {self.whole.images_per_s:,.1f} images/s"

    def text(self) -> str:
        """The report for people, one line for each stage."""
        compiled = "compiled" if self.compiled else "not compiled"
        lines = [
            f"{self.model} on {self.device} in {self.dtype}, {self.cores} cores, batch {self.batch_size}",
            f"attention {self.attention}, {compiled}, images resized by the {self.resize}",
        ]
        on_cores = ("read", "decode", "resize") if self.resize == "host" else ("read", "decode")
        for name, stage in [*self.stages.items(), ("whole run", self.whole)]:
            unit = "images/s on one core" if name in on_cores else "images/s"
            lines.append(f"{name:10}{stage.seconds:9.2f} s for {stage.images:,} images{stage.images_per_s:12,.1f} {unit}")
        if self.model_gflops is not None:
            share = self.model_gflops / self.peak_gflops
            lines.append(f"the model reaches {self.model_gflops:,.0f} of {self.peak_gflops:,.0f} GFLOP/s, {share:.0%} of the peak")
        share = self.whole.images_per_s / self.possible_images_per_s
        lines.append(f"the whole run reaches {share:.0%} of the {self.possible_images_per_s:,.1f} images/s that the stages allow")
        return "\n".join([*lines, self.advice])


def benchmark(sources: Sequence[str], config: EmbedConfig, *, images: int = 256, scratch: str = ".") -> BenchmarkReport:
    """Measure every stage of embedding alone, and the whole.

    Args:
        sources: folders, files, globs, `.tar` or `.zip` archives with the images to measure with; none makes up some of 500 x 375 pixels.
        config: as for `embed`.
        images: how many images are used at most, spread evenly over all.
        scratch: folder on the disk that is measured; everything written there is removed.

    Raises:
        DinoExtractError: as from `embed`; or not one of the images can be read.
    """
    if "," in config.device or config.device == "all":
        raise ConfigError(f"`device` must be a single device, got `{config.device}`", hint="measure each GPU alone, or use all in `embed`")
    if config.preprocess == "native":
        raise ConfigError("`benchmark` needs images of one size, which `preprocess=native` does not give", hint="leave it out")
    with tempfile.TemporaryDirectory(prefix="dino-extract-benchmark-", dir=scratch) as folder:
        if not sources:
            sources = [os.path.join(folder, "images")]
            make_images(sources[0], images)
        job = _part_of(prepare(sources, os.path.join(folder, "whole.h5"), config), images)
        settings = job.settings
        stages, pixels, decoded = _measure_input(job)
        resizes_on_device = job.settings.resizes_on_device and bool(decoded)  # large images the decoders resize all the same
        if resizes_on_device:
            stages["resize"] = measure_resize(decoded, settings.preprocess, settings.device)
        engine = job.recipe.engine()
        stages["model"], arrays = measure_model(engine, pixels)
        stages["write"] = _measure_write(job, arrays, os.path.join(folder, "write.h5"))
        result = run(job)
    whole = Stage(result.embedded, result.seconds, result.embedded / result.seconds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = _load_of(stages, cores, shares_cores=settings.device.type == "cpu", resizes_on_device=resizes_on_device)
    bound = max(load, key=lambda name: load[name])
    # On a CPU all stages want the same cores, so their times add up; beside a GPU the slowest sets the pace.
    seconds_per_image = sum(load.values()) if settings.device.type == "cpu" else max(load.values())
    flops = job.recipe.image_flops
    return BenchmarkReport(
        model=settings.model.name,
        device=str(settings.device),
        dtype=settings.dtype,
        cores=cores,
        batch_size=engine.batch_size,
        attention=engine.attention,
        compiled=engine.compiled,
        resize="device" if resizes_on_device else "host",
        stages=stages,
        whole=whole,
        possible_images_per_s=1 / seconds_per_image,
        peak_gflops=measure_peak(settings.device, getattr(torch, settings.dtype)) / 1e9,
        model_gflops=None if flops is None else flops * stages["model"].images_per_s / 1e9,
        bound=bound,
        advice=f"{_BOUND_BY[bound]} bounds the run: {REMEDIES[bound]} would help",
    )


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float | None = None) -> float:
    """The rate of large matrix products on the whole device, in operations per second: the ceiling of any model.

    Args:
        device: what to measure.
        dtype: of the matrices.
        seconds: to measure for; by default `PEAK_SECONDS`.
    """
    seconds = PEAK_SECONDS if seconds is None else seconds
    if device.type == "cuda":
        return _product_rate(device, dtype, PEAK_SIDE["cuda"], seconds)
    cores = torch.get_num_threads()
    pool = start_pool(cores, 1)
    return sum(pool.map(lambda _: _product_rate(device, dtype, PEAK_SIDE["cpu"], seconds), range(cores)))


def _product_rate(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    # Random numbers: equal ones flip few bits, and a GPU that saves power so runs faster than with any model.
    left, right, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))

    def multiply(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    multiply(3)
    times = max(3, round(seconds / PEAK_WINDOWS / (multiply(3) / 3)))
    return 2 * side**3 * times / min(multiply(times) for _ in range(PEAK_WINDOWS))


def make_images(folder: str, count: int) -> None:
    """Write JPEGs of 500 x 375 pixels with as much detail at every scale as photographs have, about 70 KB each."""
    os.mkdir(folder)
    draw = np.random.default_rng(0)
    for index in range(count):
        octaves = [
            np.asarray(Image.fromarray(draw.integers(0, 256, (2**k, 2**k, 3), dtype=np.uint8)).resize((500, 375)), np.float32)
            for k in range(1, 9)
        ]
        Image.fromarray(np.mean(octaves, axis=0).astype(np.uint8)).save(Path(folder) / f"{index:06}.jpg", quality=90)


def _part_of(job: Job, num_images: int) -> Job:
    total = len(job.manifest)
    if total <= num_images:
        return job
    recipe = replace(job.recipe, settings=replace(job.settings, num_images=num_images))
    manifest = job.manifest.take([index * total // num_images for index in range(num_images)])
    return make_job(recipe, manifest, job.output)


def _measure_input(job: Job) -> tuple[dict[str, Stage], np.ndarray, list[np.ndarray]]:
    """The stages before the model, each on one core; a batch of pixels (B, H, W, 3) uint8, and decoded pictures that may wait."""
    options = job.settings.preprocess
    count = 0
    pixels: list[np.ndarray] = []
    decoded_pictures: list[np.ndarray] = []
    seconds = dict.fromkeys(("read", "decode", "resize"), 0.0)
    for index in range(len(job.manifest)):
        try:
            start = time.perf_counter()
            content = read_image_bytes(job.manifest[index], max_bytes=options.max_bytes)
            opened = time.perf_counter()
            picture, _ = decoded_image(content, options)
        except ImageError:
            continue  # the whole run counts it as failed; here it has no time
        decoded = time.perf_counter()
        resized = np.asarray(preprocess_image(picture, options))
        done = time.perf_counter()
        for name, value in zip(seconds, (opened - start, decoded - opened, done - decoded), strict=True):
            seconds[name] += value
        count += 1
        if len(pixels) < job.settings.batch_size:
            pixels.append(resized)
            if options.can_resize_later(picture.height, picture.width):
                decoded_pictures.append(np.asarray(picture))
    if not pixels:
        raise ConfigError("none of the images can be read", hint="`dino-extract embed` says why, image by image")
    batch = np.stack([pixels[index % len(pixels)] for index in range(job.settings.batch_size)])
    return {name: Stage(count, value, count / max(value, 1e-9)) for name, value in seconds.items()}, batch, decoded_pictures


def measure_resize(images: Sequence[np.ndarray], options: Preprocess, device: torch.device) -> Stage:
    """Resizing pictures (H, W, 3) uint8 on the device, from their way there to the end."""
    pinned = [allocator_for(device)(image.shape) for image in images]
    for memory, image in zip(pinned, images, strict=True):
        memory[:] = image
    ready = DeviceImages(pinned, np.zeros(len(pinned), bool), options)

    def resize() -> None:
        to_device(ready, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    resize()  # the first time loads kernels
    start = time.perf_counter()
    done = 0
    while done == 0 or time.perf_counter() - start < RESIZE_SECONDS:
        resize()
        done += len(images)
    seconds = time.perf_counter() - start
    return Stage(done, seconds, done / seconds)


def measure_model(engine: Engine, pixels: np.ndarray, seconds: float | None = None) -> tuple[Stage, dict[str, np.ndarray]]:
    """The model alone, with batches under way as in a run, and the arrays it gives.

    Args:
        engine: the model.
        pixels: (B, H, W, 3) uint8.
        seconds: to measure for; by default `MODEL_SECONDS`.
    """
    least_s = MODEL_SECONDS if seconds is None else seconds
    waiting = allocator_for(engine.device)(pixels.shape)  # as a run has them
    waiting[:] = pixels
    pixels = waiting
    arrays = engine(pixels)  # the first batch prepares what later ones use
    under_way = deque(engine.submit(pixels) for _ in range(IN_FLIGHT))
    under_way.popleft().result()
    start = time.perf_counter()
    done = 0
    while done == 0 or time.perf_counter() - start < least_s:
        under_way.append(engine.submit(pixels))
        under_way.popleft().result()
        done += len(pixels)
    seconds = time.perf_counter() - start
    for batch in under_way:
        batch.result()
    return Stage(done, seconds, done / seconds), arrays


def _measure_write(job: Job, arrays: dict[str, np.ndarray], path: str) -> Stage:
    """Writing as many rows as there are images, to a finished file."""
    table: RowTable = job.row_table()
    count = len(table)
    size = next(len(rows) for rows in arrays.values())
    start = time.perf_counter()
    with open_writer(path, table, job.layout) as writer:
        for first in range(0, count, size):
            rows = np.arange(first, min(first + size, count))
            part = {name: values[: len(rows)].copy() for name, values in arrays.items()}
            writer.write(rows, part, image_size=np.ones((len(rows), 2), np.int32))
        writer.finish()
    seconds = time.perf_counter() - start
    return Stage(count, seconds, count / seconds)


def _load_of(stages: dict[str, Stage], cores: int, *, shares_cores: bool, resizes_on_device: bool) -> dict[str, float]:
    """Seconds that an image costs in each stage with all cores at work.

    Beside a GPU, stages that share the cores, or the GPU, are one, under the name of the slowest of them.
    """
    on_cores = ["read", "decode"] if resizes_on_device else ["read", "decode", "resize"]
    load = {name: 1 / stage.images_per_s / (cores if name in on_cores else 1) for name, stage in stages.items()}
    if shares_cores:
        return load
    groups = [on_cores, [name for name in ("resize", "model") if name not in on_cores], ["write"]]
    return {max(group, key=lambda name: load[name]): sum(load[name] for name in group) for group in groups}
