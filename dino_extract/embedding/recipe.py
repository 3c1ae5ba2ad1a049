"""How images become embeddings on this machine: model, tokens, pixels and device, resolved from the options or from a file's record.

`Settings` is plain text and numbers, which another process can take over. `Recipe` adds the model with its weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

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
    require_decoder,
)
from dino_extract.errors import ConfigError, StoreError, WeightsError
from dino_extract.images.preprocess import Preprocess, parse_size
from dino_extract.names import path_as_text, path_from_text, printable
from dino_extract.store import RowDataset
from dino_extract.tokens import TokenSpec
from dino_extract.weights import LoadedBackbone, is_timm
from dino_extract.weights.loading import load

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dino_extract.config import EmbedOptions

PACKAGES = ("dino-extract", "torch", "pillow", "h5py", "numpy")  # whose versions are recorded

# Options that decide the pixels, and the field of `Preprocess` that each becomes. Their record in a file is that of `Preprocess`.
PIXEL_FIELDS = {"preprocess": "policy", "alpha": "alpha", "fast_decode": "fast_decode", "max_pixels": "max_pixels"}


@dataclass(frozen=True)
class ModelRecord:
    """Which model it is, without the model.

    Args:
        name: canonical name, such as `vits14`.
        weights_sha256: identifies the weights; `random:SEED` for random ones.
        weights_source: where they came from, for the user.
        licence: under which they may be used.
        notes: what was left out or filled in while reading them, for the user.
        embed_dim: width D of a token.
        num_registers: register tokens R.
    """

    name: str
    weights_sha256: str
    weights_source: str
    licence: str
    notes: tuple[str, ...]
    embed_dim: int
    num_registers: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every option resolved, as plain text and numbers: it can be pickled and loaded by another process with `load_recipe`.

    Args:
        config: the options; the path in `weights` is absolute.
        model: which model it is.
        spec: the tokens to keep.
        preprocess: how an image becomes the pixels that the model sees.
        devices: names of torch devices of one kind; batches go to them in turn.
        dtype: precision of the matrix products.
        num_images: images of the whole job, with finished ones: an interrupted run must continue with the same kernels, for the same bits.
        batch_size: images in one batch.
        compiled: whether torch.compile makes the network.
    """

    config: EmbedConfig
    model: ModelRecord
    spec: TokenSpec
    preprocess: Preprocess
    devices: tuple[str, ...]
    dtype: ComputeDtype
    num_images: int
    batch_size: int
    compiled: bool

    @property
    def device(self) -> torch.device:
        """The first device. The others are of the same kind."""
        return torch.device(self.devices[0])

    @property
    def resizes_on_device(self) -> bool:
        """Whether small images are resized on the device; `native` images never are, as each has a shape of its own."""
        config = self.config
        is_wanted = "device" in (config.resize, config.decode) or (config.resize == "auto" and self.device.type == "cuda")
        return is_wanted and self.preprocess.policy != "native"

    def datasets(self) -> tuple[RowDataset, ...]:
        """The datasets that store the tokens of each image."""
        grid = self.preprocess.grid
        shapes = self.spec.row_shapes(embed_dim=self.model.embed_dim, num_registers=self.model.num_registers, grid=grid)
        return tuple(
            RowDataset(name, shapes[name], self.config.store_dtype, kind.is_grid and grid is None) for name, kind, _ in self.spec.outputs()
        )

    def record(self) -> dict[str, str | int | float | bool]:
        """Attributes of a file that say how its embeddings were made; `config_of` reads them back."""
        config, model = self.config, self.model
        return {
            "model": model.name,
            "weights": printable(os.fsencode(model.weights_source)),
            "weights_path": path_as_text(os.fsencode(config.weights)) if config.weights else "",
            "weights_sha256": model.weights_sha256,
            "licence": model.licence,
            "preprocessing": json.dumps(self.preprocess.as_record(), sort_keys=True),
            "tokens": ",".join(self.spec.kinds),
            "layers": ",".join(map(str, self.spec.layers)),
            "patch_size": self.preprocess.patch,
            "num_registers": model.num_registers,
            "compute_dtype": self.dtype,
            "store_dtype": config.store_dtype,
            "normalised": False,  # embeddings are stored as the model gives them, not divided by their length
            "versions": json.dumps({package: version(package) for package in PACKAGES}, sort_keys=True),
        }


@dataclass(frozen=True)
class Recipe:
    """Settings and the model with its weights: everything between the bytes of an image and its embeddings.

    Two recipes are equal if their settings are. Made by `recipe_of`, `recipe_like` or `load_recipe`.
    """

    settings: Settings
    model: LoadedBackbone = field(compare=False, repr=False)

    def engines(self, *, release: bool = False) -> list[Engine]:
        """The model on each device, ready to run; with `release` the last takes over the weights, and no other one can be made."""
        devices = [torch.device(device) for device in self.settings.devices]
        last = len(devices) - 1
        return [self._engine(device, release=release and number == last) for number, device in enumerate(devices)]

    def engine(self, *, release: bool = False) -> Engine:
        """As `engines`, on the first device."""
        return self._engine(self.settings.device, release=release)

    def _engine(self, device: torch.device, *, release: bool) -> Engine:
        settings = self.settings
        return Engine(
            self.model.module,
            settings.spec,
            device=device,
            dtype=settings.dtype,
            store_dtype=settings.config.store_dtype,
            batch_size=settings.batch_size,
            release=release,
            compiled=settings.compiled,
            size=(settings.preprocess.height, settings.preprocess.width),
        )

    @property
    def image_flops(self) -> float | None:
        """Floating-point operations of the model for one image of the recipe's size; None if it is not our network."""
        return image_flops(self.model, self.settings.preprocess, self.settings.spec)


def image_flops(model: LoadedBackbone, preprocess: Preprocess, spec: TokenSpec) -> float | None:
    """Floating-point operations of a model for one image; None if it is not our network."""
    return forward_flops(model.module, (preprocess.height, preprocess.width), whole=spec.needs_patches)


class HasRecord(Protocol):
    """Anything that records how its embeddings were made: a store, or a classifier trained on one."""

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
        num_images: images of the whole job: many are worth larger batches, and compiling.

    Raises:
        DinoExtractError: options do not go together or not with this machine, or the model cannot be had.
    """
    _require_compatible(config)
    devices = choose_devices(config.device)  # before the model is loaded, as mistakes are reported before anything slow
    model = _load(config)
    spec = TokenSpec.parse(config.tokens, config.layers, model.module.depth)
    preprocess = _preprocess_of(config, model)
    is_native = preprocess.policy == "native"
    size = preprocess.height, preprocess.width
    flops = None if is_native else image_flops(model, preprocess, spec)  # of `native`, every shape would be compiled anew
    settings = Settings(
        config=replace(config, weights=config.weights and os.path.abspath(os.path.expanduser(config.weights))),
        model=_record_of(model),
        spec=spec,
        preprocess=preprocess,
        devices=tuple(map(str, devices)),
        dtype=choose_dtype(config.dtype, devices[0]),
        num_images=num_images,
        # images of different shapes cannot share a batch
        batch_size=1 if is_native else config.batch or choose_batch_size(model.module, size, devices[0], num_images),
        compiled=choose_compiled(config.compile, devices[0], None if flops is None else flops * num_images),
    )
    return Recipe(settings, model)


def load_recipe(settings: Settings) -> Recipe:
    """The recipe of settings that another process has resolved, with the weights loaded here.

    Raises:
        WeightsError: the weights cannot be had, or they are not those of the settings.
    """
    model = _load(settings.config)
    if model.weights_sha256 != settings.model.weights_sha256:
        was, found = settings.model.weights_sha256[:16], model.weights_sha256[:16]
        raise WeightsError(f"the settings are for weights {was}..., found {found}...", hint="use the same checkpoint on every machine")
    return Recipe(settings, model)


def recipe_like(store: HasRecord, num_images: int, **changes: Unpack[EmbedOptions]) -> Recipe:
    """The recipe that a file was made by.

    Args:
        store: the file, or anything that records how it was made.
        num_images: as for `recipe_of`.
        changes: fields of `EmbedConfig` to set differently from the file, such as `weights` where the checkpoint has moved.

    Raises:
        ConfigError: an option is unknown.
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


def config_of(store: HasRecord, **changes: Unpack[EmbedOptions]) -> EmbedConfig:
    """The options that a file was made with, so that other images get comparable embeddings.

    Args:
        store: the file.
        changes: fields of `EmbedConfig` to set differently, such as `weights` where the checkpoint has moved.

    Raises:
        ConfigError: an option is unknown.
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
        "dtype": attrs["compute_dtype"],
        "store_dtype": attrs["store_dtype"],
        **{name: getattr(pixels, there) for name, there in PIXEL_FIELDS.items()},
    }
    return EmbedConfig.of({**made_with, **changes})


def _load(config: EmbedConfig) -> LoadedBackbone:
    return load(config.model, weights=config.weights, random_weights=config.random_weights, offline=config.offline)


def _record_of(model: LoadedBackbone) -> ModelRecord:
    module = model.module
    return ModelRecord(
        model.name, model.weights_sha256, model.weights_source, model.licence, model.notes, module.embed_dim, module.num_registers
    )


def _preprocess_of(config: EmbedConfig, model: LoadedBackbone) -> Preprocess:
    height, width = parse_size(model.size if config.size is None else config.size)
    module = model.module
    pixels: dict[str, Any] = {there: getattr(config, name) for name, there in PIXEL_FIELDS.items()}
    return Preprocess(height=height, width=width, patch=module.patch_size, decode=config.decode, mean=module.mean, std=module.std, **pixels)


def _require_compatible(config: EmbedConfig) -> None:
    """Refuse options that contradict each other."""
    is_native = config.preprocess == "native"
    if is_native and config.resize == "device":
        raise ConfigError("`resize=device` needs images of one size, and `preprocess=native` gives each its own", hint="leave it out")
    if config.decode != "device":
        return
    for is_other, other in (
        (is_native, "preprocess=native"),
        (config.fast_decode, "fast_decode"),
        (config.resize == "host", "resize=host"),
    ):
        if is_other:
            raise ConfigError(f"`decode=device` does not go with `{other}`", hint="leave one of them out")
    require_decoder()
