"""What a run of `embed` will do: images, model, pixels, tokens and layout, resolved from the options before any work."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch

from dino_extract.config import SIGNATURE, EmbedConfig, parse_shard
from dino_extract.engine import (
    ComputeDtype,
    Engine,
    allocator_for,
    choose_batch_size,
    choose_compiled,
    choose_device,
    choose_dtype,
    forward_flops,
    needs_patches,
    require_decoder,
)
from dino_extract.errors import ConfigError, SourceError, StoreError
from dino_extract.loader import Loader, scan_image_sizes
from dino_extract.manifest import Manifest, manifest_of, printable, resolve, root_as_text, root_from_text
from dino_extract.preprocess import Preprocess, parse_size
from dino_extract.source import Sources, find_images
from dino_extract.store import Layout, RowDataset, RowTable, Store, count_pending, ensure_space
from dino_extract.tokens import TokenSpec
from dino_extract.weights import RANDOM_WEIGHTS_WARNING, LoadedBackbone, is_timm
from dino_extract.weights.loading import load

PROBE_BATCHES = 3  # of which the first warms up and the others are timed, for the estimate of `--dry-run`


@dataclass(frozen=True, eq=False)
class Job:
    """Everything a run needs to know; made by `prepare`."""

    config: EmbedConfig
    manifest: Manifest
    model: LoadedBackbone
    spec: TokenSpec
    preprocess: Preprocess
    device: torch.device
    dtype: ComputeDtype
    batch_size: int
    output: str
    layout: Layout
    grid_size: np.ndarray | None  # (N, 2) int32 patch grid of each image, where they differ and patches are stored

    def row_table(self) -> RowTable:
        """The images as the store wants them."""
        manifest = self.manifest
        return RowTable(manifest.keys, manifest.file_size, manifest.file_mtime_ns, self.grid_size, manifest.unread)

    def engine(self, *, release: bool = False) -> Engine:
        """The model, ready to run; with `release` it takes over the weights, and the job cannot make another one."""
        # Of all images, not of those still to do: a run that was interrupted goes on with the same kernels, hence with the same bits.
        # Of `native` none, as every shape would be compiled anew.
        flops = None if self.image_flops is None or self.preprocess.grid is None else self.image_flops * len(self.manifest)
        return Engine(
            self.model.module,
            self.spec,
            device=self.device,
            dtype=self.dtype,
            store_dtype=self.config.store_dtype,
            batch_size=self.batch_size,
            release=release,
            compiled=choose_compiled(self.config.compile, self.device, flops),
            size=(self.preprocess.height, self.preprocess.width),
        )

    @property
    def resizes_on_device(self) -> bool:
        """Whether small images are resized beside the model; `native` images never are, as each has a shape of its own."""
        config = self.config
        is_wanted = "device" in (config.resize, config.decode) or (config.resize == "auto" and self.device.type == "cuda")
        return is_wanted and self.preprocess.policy != "native"

    @property
    def image_flops(self) -> float | None:
        """Floating-point operations of the model for one image of the job's size; None if it is not our network."""
        return forward_flops(self.model.module, (self.preprocess.height, self.preprocess.width), whole=needs_patches(self.spec))

    def loader(self, rows: np.ndarray) -> Loader:
        """Decoded batches of the given rows (n,) of the manifest, in their order."""
        return Loader(
            self.manifest,
            rows,
            self.preprocess,
            resizes=not self.resizes_on_device,
            batch_size=self.batch_size,
            num_workers=self.config.workers,
            prefetch_batches=2 if self.resizes_on_device else 4,  # decoded images are larger than resized ones
            timeout_s=self.config.decode_timeout_s,
            allocate=allocator_for(self.device),
        )

    def nbytes(self) -> int:
        """Size of the finished file, if every row is new."""
        patches = 0 if self.grid_size is None else int(self.grid_size.astype(np.int64).prod(axis=1).sum())
        return self.layout.nbytes(len(self.manifest), max(map(len, self.manifest.keys), default=1), patches)

    def describe(self) -> list[str]:
        """What the run is about to do, for people."""
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.manifest.skipped.items()))
        shard = f" of shard {self.config.shard}" if self.config.shard else ""
        lines = [f"{len(self.manifest):,} images{shard}" + (f" (left out: {skipped})" if skipped else "")]
        height, width = self.preprocess.height, self.preprocess.width
        lines.append(
            f"{self.model.name} ({self.model.weights_source}) on {self.device} in {self.dtype}, "
            f"{self.config.preprocess} {height}x{width}, batch {self.batch_size} -> {self.output}"
        )
        lines.extend(f"note: {note}" for note in self.model.notes)
        if self.device.type == "cuda" and self.config.shard is None and (num_gpus := torch.cuda.device_count()) > 1:
            lines.append(f"note: one of {num_gpus} GPUs is used; `--shard K/{num_gpus}` on each and `join` use all")
        if self.config.random_weights is not None:
            lines.append(f"warning: {RANDOM_WEIGHTS_WARNING}")
        return lines

    def plan(self, *, overwrite: bool = False, retry_failed: bool = False, prune: bool = False) -> Plan:
        """What a run with these arguments would need; runs the model on a few blank batches to estimate the time.

        Raises:
            StoreError: such a run would be refused, because of the file that is there.
        """
        rows, pending = count_pending(
            self.output, self.row_table(), self.layout, overwrite=overwrite, retry_failed=retry_failed, prune=prune
        )
        seconds = self._batch_seconds() * pending / self.batch_size if pending else 0.0
        free = shutil.disk_usage(os.path.dirname(os.path.realpath(self.output))).free
        return Plan(self.output, len(self.manifest), rows, pending, self.nbytes(), free, round(seconds, 1))

    def _batch_seconds(self) -> float:
        engine = self.engine()
        blank = np.zeros((self.batch_size, self.preprocess.height, self.preprocess.width, 3), np.uint8)
        times = []
        for _ in range(PROBE_BATCHES):
            start = time.perf_counter()
            engine(blank)
            times.append(time.perf_counter() - start)
        return min(times[1:])


class MadeWith(Protocol):
    """Anything that records how embeddings were made: a store, or a classifier trained on one."""

    @property
    def path(self) -> str:
        """The file."""

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes as `embed` writes them."""


@dataclass(frozen=True)
class Plan:
    """What a run would need.

    Args:
        path: the HDF5 file.
        images: found by the sources.
        rows: of the file, with those of images that have gone.
        pending: rows to be embedded; the others are there already.
        nbytes: size in bytes of a file of all images found.
        free_bytes: free on its disk.
        model_seconds: estimated time of the model alone; decoding runs beside it.
    """

    path: str
    images: int
    rows: int
    pending: int
    nbytes: int
    free_bytes: int
    model_seconds: float

    def text(self) -> str:
        """The plan for people."""
        return (
            f"{self.images:,} images -> {self.path}, {self.rows - self.pending:,} rows kept, {self.pending:,} to embed, "
            f"{self.nbytes:,} bytes ({self.free_bytes:,} free), about {self.model_seconds:,.0f} s of model time"
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
        DinoExtractError: something about the sources, the model, the options or the disk does not fit.
    """
    path = (
        os.fspath(output) if output is not None else _default_output(sources, config.shard) if sources else ""
    )  # refused by `find_images`
    manifest = find_images(sources, suffixes=suffixes, stdin=stdin, leave_out=path)
    if config.shard is not None:
        manifest = manifest.shard(*parse_shard(config.shard))
    job = _job(manifest, path, config)
    if not os.path.exists(path):
        ensure_space(path, job.nbytes())
    return job


def prepare_like(store: MadeWith, sources: Sources, **changes: Any) -> Job:
    """A job that embeds other images exactly as those of a file were embedded; it is not meant to be written to a file.

    Args:
        store: the file, or anything that records how it was made.
        sources: as for `find_images`.
        changes: fields of `EmbedConfig` to set differently from the file, such as `weights` where the checkpoint has moved.

    Raises:
        StoreError: the weights found now are not those the file was made with.
    """
    return _job_like(store, find_images(sources), changes)


def prepare_alone(made: EmbedConfig | MadeWith, **changes: Any) -> Job:
    """A job without images, for the model and the steps before it, with batches for many.

    Args:
        made: all options, or a file, or anything that records how it was made.
        changes: with a file, fields of `EmbedConfig` to set differently.

    Raises:
        StoreError: the weights found now are not those the file was made with.
    """
    nothing = manifest_of(os.getcwdb(), ())
    if isinstance(made, EmbedConfig):
        return _job(nothing, "", made, num_images=sys.maxsize)
    return _job_like(made, nothing, changes, num_images=sys.maxsize)


def prepare_again(store: Store, rows: Sequence[int], **changes: Any) -> Job | None:
    """A job that embeds images of a file again; None if none of them is where and as it was.

    Args:
        store: the file.
        rows: of embedded images, ascending; those that are gone or have changed are left out of the job's manifest.
        changes: as for `prepare_like`.
    """
    root = root_from_text(store.attrs["root"])
    paths, sizes, times = store.paths, store.file_size, store.file_mtime_ns
    found = []
    for row in rows:
        with contextlib.suppress(SourceError):  # gone or changed: the manifest says which were found
            found.append(resolve(root, os.fsencode(paths[row]), stamp=(int(sizes[row]), int(times[row]))))
    return _job_like(store, manifest_of(root, found), changes) if found else None


def _job_like(store: MadeWith, manifest: Manifest, changes: dict[str, Any], *, num_images: int | None = None) -> Job:
    job = _job(manifest, store.path, config_of(store, **changes), num_images=num_images)
    if job.model.weights_sha256 != store.attrs["weights_sha256"]:
        message = f"`{store.path}` was made with weights {store.attrs['weights_sha256'][:16]}..., found {job.model.weights_sha256[:16]}..."
        raise StoreError(
            message,
            hint="embed new images with the checkpoint it was made with and give that file, or name it to `verify` by `--weights`",
        )
    return job


def _job(manifest: Manifest, path: str, config: EmbedConfig, *, num_images: int | None = None) -> Job:
    """The job; `num_images` is how many are expected, if not those of the manifest."""
    model = load(config.model, weights=config.weights, random_seed=config.random_weights, offline=config.offline)
    spec = TokenSpec.parse(config.tokens, config.layers, model.module.depth)
    preprocess = _preprocess(config, model)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    is_native = preprocess.policy == "native"
    if is_native and config.resize == "device":
        raise ConfigError("`--resize device` needs images of one size, `--preprocess native` gives each its own", hint="leave it out")
    if config.decode == "device":
        if is_native or config.resize == "host" or config.fast_decode:
            other = "--preprocess native" if is_native else "--fast-decode" if config.fast_decode else "--resize host"
            raise ConfigError(f"`--decode device` does not go with `{other}`", hint="leave one of them out")
        require_decoder()
    batch_size = choose_batch_size(
        model.module, (preprocess.height, preprocess.width), device, len(manifest) if num_images is None else num_images
    )
    return Job(
        config=config,
        manifest=manifest,
        model=model,
        spec=spec,
        preprocess=preprocess,
        device=device,
        dtype=dtype,
        batch_size=1 if is_native else config.batch or batch_size,  # images of different shapes cannot share a batch
        output=path,
        layout=_layout(config, manifest, model, spec, preprocess, dtype),
        grid_size=_native_grids(config, manifest, preprocess) if is_native and "patch" in spec.kinds else None,
    )


def _native_grids(config: EmbedConfig, manifest: Manifest, preprocess: Preprocess) -> np.ndarray:
    """Patch grid (N, 2) int32 of every image from its header, (0, 0) where that cannot be read."""
    sizes = scan_image_sizes(manifest, preprocess, num_workers=config.workers, timeout_s=config.decode_timeout_s)
    return np.array([preprocess.native_grid(*size) if min(size) > 0 else (0, 0) for size in sizes.tolist()], np.int32)


def config_of(store: MadeWith, **changes: Any) -> EmbedConfig:
    """The options that a file was made with, so that other images get comparable embeddings.

    Args:
        store: the file.
        changes: fields of `EmbedConfig` to set differently, such as `weights` where the checkpoint has moved.
    """
    attrs = store.attrs
    pixels = Preprocess.from_record(json.loads(attrs["preprocessing"]))
    sha256 = attrs["weights_sha256"]
    made_with = {
        # A checkpoint tells its model, whose name need not be one of the table; one for timm does not.
        "model": None if attrs["weights_path"] and not is_timm(attrs["model"]) else attrs["model"],
        "weights": os.fsdecode(root_from_text(attrs["weights_path"])) or None,
        "random_weights": int(sha256.removeprefix("random:")) if sha256.startswith("random:") else None,
        "tokens": attrs["tokens"],
        "layers": attrs["layers"] or None,
        "size": f"{pixels.height}x{pixels.width}" if pixels.height != pixels.width else str(pixels.height),
        "preprocess": pixels.policy,
        "alpha": pixels.alpha,
        "fast_decode": pixels.fast_decode,
        "max_pixels": pixels.max_pixels,
        "dtype": attrs["compute_dtype"],
        "store_dtype": attrs["store_dtype"],
    }
    return EmbedConfig(**{**made_with, **changes})


def _preprocess(config: EmbedConfig, model: LoadedBackbone) -> Preprocess:
    height, width = parse_size(model.size if config.size is None else config.size)
    return Preprocess(
        policy=config.preprocess,
        height=height,
        width=width,
        patch=model.module.patch_size,
        alpha=config.alpha,
        fast_decode=config.fast_decode,
        decode=config.decode,
        max_pixels=config.max_pixels,
        mean=model.module.mean,
        std=model.module.std,
    )


def _layout(
    config: EmbedConfig, manifest: Manifest, model: LoadedBackbone, spec: TokenSpec, preprocess: Preprocess, dtype: ComputeDtype
) -> Layout:
    backbone = model.module
    is_native = preprocess.policy == "native"
    shapes = spec.row_shapes(embed_dim=backbone.embed_dim, num_registers=backbone.num_registers, grid=preprocess.grid or (0, 0))
    datasets = []
    for name, shape in shapes.items():
        is_ragged = is_native and name.endswith("patch_features")
        datasets.append(RowDataset(name, shape[-1:] if is_ragged else shape, config.store_dtype, is_ragged))
    packages = ("dino-extract", "torch", "pillow", "h5py", "numpy")
    attrs: dict[str, str | int | float | bool] = {
        "model": model.name,
        "weights": printable(os.fsencode(model.weights_source)),
        "weights_path": root_as_text(os.fsencode(os.path.abspath(os.path.expanduser(config.weights)))) if config.weights else "",
        "weights_sha256": model.weights_sha256,
        "licence": model.licence,
        "preprocessing": json.dumps(preprocess.as_record(), sort_keys=True),
        "tokens": ",".join(spec.kinds),
        "layers": ",".join(map(str, spec.layers)),
        "patch_size": backbone.patch_size,
        "num_registers": backbone.num_registers,
        "compute_dtype": dtype,
        "store_dtype": config.store_dtype,
        "normalised": False,  # embeddings are stored as the model gives them, not divided by their length
        "versions": json.dumps({package: version(package) for package in packages}, sort_keys=True),
        "root": root_as_text(manifest.root),
        "sources": json.dumps([printable(source) for source in manifest.sources]),
    }
    if config.shard is not None:
        attrs["shard"] = config.shard
    return Layout(tuple(datasets), attrs, (*SIGNATURE, "shard"))


def _default_output(sources: Sequence[str], shard: str | None) -> str:
    source = os.fsdecode(sources[0])
    is_pattern = glob.has_magic(source) and not os.path.lexists(source)
    if len(sources) != 1 or source.startswith("-") or is_pattern:
        raise SourceError("a pattern, a list or several sources need a name for the file", hint="give it with `-o FILE.h5`")
    name = os.path.basename(os.path.abspath(source)) or "embeddings"
    stem = name.removesuffix(".tar") if name.endswith(".tar") else os.path.splitext(name)[0] if os.path.isfile(source) else name
    return stem + (".h5" if shard is None else ".{}-of-{}.h5".format(*parse_shard(shard)))
