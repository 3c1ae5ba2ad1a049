"""How images become embeddings on this machine: model, tokens, pixels and device, resolved from the options or from a file's record."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import torch

from dino_extract.config import EmbedConfig
from dino_extract.engine import (
    ComputeDtype,
    Engine,
    choose_batch_size,
    choose_compiled,
    choose_devices,
    choose_dtype,
    forward_flops,
    needs_patches,
    require_decoder,
)
from dino_extract.errors import ConfigError, StoreError
from dino_extract.images.preprocess import Preprocess, parse_size
from dino_extract.names import path_as_text, path_from_text, printable
from dino_extract.store import RowDataset
from dino_extract.tokens import TokenSpec
from dino_extract.weights import LoadedBackbone, is_timm
from dino_extract.weights.loading import load


@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """Everything between the bytes of an image and its embeddings; made by `recipe_of` or `recipe_like`."""

    config: EmbedConfig
    model: LoadedBackbone
    spec: TokenSpec
    preprocess: Preprocess
    devices: tuple[torch.device, ...]  # of one kind; batches go to them in turn
    dtype: ComputeDtype
    num_images: int  # of the whole job, finished ones too: a run that was interrupted goes on with the same kernels, hence the same bits
    batch_size: int

    @property
    def device(self) -> torch.device:
        """The first device, or one for all where only the kind counts."""
        return self.devices[0]

    def engines(self, *, release: bool = False) -> list[Engine]:
        """The model on each device, ready to run; with `release` the last takes over the weights, and no other one can be made."""
        last = len(self.devices) - 1
        return [self._engine(device, release=release and number == last) for number, device in enumerate(self.devices)]

    def engine(self, *, release: bool = False) -> Engine:
        """As `engines`, on the first device."""
        return self._engine(self.device, release=release)

    def _engine(self, device: torch.device, *, release: bool) -> Engine:
        # Of `native` nothing is compiled, as every shape would be compiled anew.
        flops = None if self.image_flops is None or self.preprocess.grid is None else self.image_flops * self.num_images
        return Engine(
            self.model.module,
            self.spec,
            device=device,
            dtype=self.dtype,
            store_dtype=self.config.store_dtype,
            batch_size=self.batch_size,
            release=release,
            compiled=choose_compiled(self.config.compile, device, flops),
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
        """Floating-point operations of the model for one image of the recipe's size; None if it is not our network."""
        return forward_flops(self.model.module, (self.preprocess.height, self.preprocess.width), whole=needs_patches(self.spec))

    def datasets(self) -> tuple[RowDataset, ...]:
        """What is kept of each image, as the store wants it."""
        backbone, grid = self.model.module, self.preprocess.grid
        shapes = self.spec.row_shapes(embed_dim=backbone.embed_dim, num_registers=backbone.num_registers, grid=grid or (0, 0))
        datasets = []
        for name, shape in shapes.items():
            is_ragged = grid is None and name.endswith("patch_features")
            datasets.append(RowDataset(name, shape[-1:] if is_ragged else shape, self.config.store_dtype, is_ragged))
        return tuple(datasets)

    def record(self) -> dict[str, str | int | float | bool]:
        """Attributes of a file that say how its embeddings were made; `config_of` reads them back."""
        config, model = self.config, self.model
        packages = ("dino-extract", "torch", "pillow", "h5py", "numpy")
        return {
            "model": model.name,
            "weights": printable(os.fsencode(model.weights_source)),
            "weights_path": path_as_text(os.fsencode(os.path.abspath(os.path.expanduser(config.weights)))) if config.weights else "",
            "weights_sha256": model.weights_sha256,
            "licence": model.licence,
            "preprocessing": json.dumps(self.preprocess.as_record(), sort_keys=True),
            "tokens": ",".join(self.spec.kinds),
            "layers": ",".join(map(str, self.spec.layers)),
            "patch_size": model.module.patch_size,
            "num_registers": model.module.num_registers,
            "compute_dtype": self.dtype,
            "store_dtype": config.store_dtype,
            "normalised": False,  # embeddings are stored as the model gives them, not divided by their length
            "versions": json.dumps({package: version(package) for package in packages}, sort_keys=True),
        }


class MadeWith(Protocol):
    """Anything that records how embeddings were made: a store, or a classifier trained on one."""

    @property
    def path(self) -> str:
        """The file."""

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes as `embed` writes them."""


def recipe_of(config: EmbedConfig, num_images: int) -> Recipe:
    """The options resolved, and the model loaded.

    Args:
        config: all options.
        num_images: that it is for: many are worth larger batches, and compiling.

    Raises:
        DinoExtractError: options that do not go together or not with this machine, or the model cannot be had.
    """
    model = load(config.model, weights=config.weights, random_seed=config.random_weights, offline=config.offline)
    spec = TokenSpec.parse(config.tokens, config.layers, model.module.depth)
    preprocess = _preprocess(config, model)
    devices = choose_devices(config.device)
    device = devices[0]
    dtype = choose_dtype(config.dtype, device)
    is_native = preprocess.policy == "native"
    if is_native and config.resize == "device":
        raise ConfigError("`--resize device` needs images of one size, `--preprocess native` gives each its own", hint="leave it out")
    if config.decode == "device":
        if is_native or config.resize == "host" or config.fast_decode:
            other = "--preprocess native" if is_native else "--fast-decode" if config.fast_decode else "--resize host"
            raise ConfigError(f"`--decode device` does not go with `{other}`", hint="leave one of them out")
        require_decoder()
    batch_size = choose_batch_size(model.module, (preprocess.height, preprocess.width), device, num_images)
    return Recipe(
        config=config,
        model=model,
        spec=spec,
        preprocess=preprocess,
        devices=devices,
        dtype=dtype,
        num_images=num_images,
        batch_size=1 if is_native else config.batch or batch_size,  # images of different shapes cannot share a batch
    )


def recipe_like(store: MadeWith, num_images: int, **changes: Any) -> Recipe:
    """The recipe that a file was made by.

    Args:
        store: the file, or anything that records how it was made.
        num_images: as for `recipe_of`.
        changes: fields of `EmbedConfig` to set differently from the file, such as `weights` where the checkpoint has moved.

    Raises:
        StoreError: the weights found now are not those the file was made with.
    """
    recipe = recipe_of(config_of(store, **changes), num_images)
    if recipe.model.weights_sha256 != store.attrs["weights_sha256"]:
        was, found = store.attrs["weights_sha256"][:16], recipe.model.weights_sha256[:16]
        raise StoreError(
            f"`{store.path}` was made with weights {was}..., found {found}...",
            hint="embed new images with the checkpoint it was made with and give that file, or name it to `verify` by `--weights`",
        )
    return recipe


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
        "weights": os.fsdecode(path_from_text(attrs["weights_path"])) or None,
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
