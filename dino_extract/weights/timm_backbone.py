"""Any timm vision transformer behind the interface of our backbone: `--model timm/NAME`. The only module that imports timm."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino_extract.backbone import Backbone, Tokens
from dino_extract.errors import ConfigError, WeightsError
from dino_extract.weights.checksum import file_sha256
from dino_extract.weights.download import unreachable
from dino_extract.weights.files import read_tensor_file
from dino_extract.weights.layouts import named
from dino_extract.weights.locate import is_offline
from dino_extract.weights.registry import TIMM_PREFIX

HUB_URL = "https://huggingface.co"


class TimmBackbone(Backbone):
    """A timm vision transformer that gives CLS, register and patch tokens for normalised RGB images.

    `cls` is the class token as `forward_features` gives it. Models without one give their pooled output instead (mean or attention
    pooling, as the model was made), and where a model has more than one class token the others count as registers.

    Args:
        model: made by timm with `num_classes=0`.

    Raises:
        ConfigError: the model is not a vision transformer with square patches.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model: Any = model  # timm's models have no common type of their own
        self.name = name
        parts: Any = model
        patch_embed = getattr(parts, "patch_embed", None)
        patch = getattr(patch_embed, "patch_size", None)
        sides = (patch, patch) if isinstance(patch, int) else tuple(patch or ())
        if not hasattr(parts, "num_prefix_tokens") or not hasattr(parts, "blocks") or len(sides) != 2 or sides[0] != sides[1]:
            raise ConfigError(
                f"`{name}` gives no sequence of tokens of square patches, so it has no CLS and patch embeddings",
                hint="vision transformers do, for example `--model timm/vit_small_patch16_dinov3`",
            )
        self.patch_size = sides[0]
        self.embed_dim = parts.embed_dim
        self.depth = len(parts.blocks)
        self.has_cls = getattr(parts, "cls_token", None) is not None
        self.num_prefix_tokens: int = parts.num_prefix_tokens
        self.num_registers = self.num_prefix_tokens - int(self.has_cls)
        settings = parts.pretrained_cfg
        self.mean = tuple(settings["mean"])
        self.std = tuple(settings["std"])
        self.image_size: int = (getattr(patch_embed, "img_size", None) or settings["input_size"])[-1]
        self.is_dynamic = bool(getattr(parts, "dynamic_img_size", False))

    def forward(self, images: Tensor) -> Tokens:
        """Final tokens of normalised images (B, 3, H, W).

        Raises:
            ConfigError: the model takes images of one size only, which is another, or does not give one token for each patch.
        """
        self._check_size(images)
        return self._split(self.model.forward_features(images), images)

    def intermediate_layers(self, images: Tensor, layers: Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Tokens after the given blocks, 0 for the first; `norm` applies the model's final norm to each."""
        self._check_size(images)
        found = self.model.forward_intermediates(
            images, indices=list(layers), norm=norm, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        in_order = dict(zip(sorted(set(layers)), found, strict=True))  # timm gives them in the order of the blocks
        return [self._split(torch.cat([prefix, patches], dim=1), images) for patches, prefix in (in_order[layer] for layer in layers)]

    def _split(self, x_BSD: Tensor, images: Tensor) -> Tokens:
        patches = (images.shape[-2] // self.patch_size) * (images.shape[-1] // self.patch_size)
        if x_BSD.ndim != 3 or x_BSD.shape[1] != self.num_prefix_tokens + patches:
            raise ConfigError(
                f"`{self.name}` gives an output of shape {tuple(x_BSD.shape)}, expected one token for each of {patches} patches"
            )
        if self.has_cls:
            return Tokens.split(x_BSD, self.num_registers)
        pooled = self.model.forward_head(x_BSD, pre_logits=True)
        return Tokens(pooled, x_BSD[:, : self.num_registers], x_BSD[:, self.num_registers :])

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if not self.is_dynamic and (height, width) != (self.image_size, self.image_size):
            raise ConfigError(
                f"`{self.name}` takes images of {self.image_size}x{self.image_size} pixels only, got {height}x{width}",
                hint=f"add `--size {self.image_size}`",
            )


@dataclass(frozen=True)
class LoadedTimm:
    """A timm backbone and which weights it has, in the words of `LoadedBackbone`."""

    module: TimmBackbone
    weights_sha256: str
    weights_source: str
    licence: str


def load_timm(name: str, *, weights: Path | None = None, random_weights: int | None = None, offline: bool = False) -> LoadedTimm:
    """The timm model `timm/NAME` in eval mode, float32, with its own pretrained weights, those of a file, or random ones.

    Raises:
        ConfigError: timm's model gives no tokens.
        WeightsError: timm has no such model, or its weights are missing or do not fit.
    """
    model = _create(name, random_weights)
    module = TimmBackbone(model, name).eval()
    licence = str(module.model.pretrained_cfg.get("license") or "unknown")
    if random_weights is not None:
        return LoadedTimm(module, f"random:{random_weights}", f"random weights, seed {random_weights}", "none")
    path = weights or _pretrained_file(name, module.model.pretrained_cfg, offline)
    _load_strictly(model, path)
    return LoadedTimm(module, file_sha256(path), f"timm checkpoint: {path}", "unknown" if weights else licence)


def _create(name: str, random_weights: int | None) -> Any:
    # Costs seconds, and nothing but `--model timm/NAME` needs it.
    import timm

    short = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(short):
        close = timm.list_models(f"*{short.split('.')[0]}*")[:5]
        raise WeightsError(
            f"timm {timm.__version__} has no model `{short}`",
            hint=f"there is {', '.join(close)}" if close else "`timm.list_models()` lists them",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_weights or 0)
        try:
            return timm.create_model(short, num_classes=0, dynamic_img_size=True)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
        torch.manual_seed(random_weights or 0)
        return timm.create_model(short, num_classes=0)


def _pretrained_file(name: str, settings: dict[str, Any], offline: bool) -> Path:
    """The pretrained weights in the Hugging Face cache, downloaded by its own client where they are missing."""
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    repository, file = settings.get("hf_hub_id"), settings.get("hf_hub_filename") or "model.safetensors"
    if not repository:
        raise WeightsError(
            f"`{name}` has no pretrained weights in timm",
            hint="give a file with `--weights PATH`, or untrained weights with `--random-weights SEED`",
        )
    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    where = f"`{file}` of https://huggingface.co/{repository} is not in the Hugging Face cache"
    hint = f"`hf download {repository} {file}` where there is a network, or `--weights PATH`"
    if is_offline(offline):
        raise WeightsError(f"the weights of `{name}` are missing and downloading is off: {where}", hint=hint)
    if reasons := unreachable([HUB_URL]):
        raise WeightsError(f"the weights of `{name}` are missing ({where}) and cannot be downloaded ({reasons[HUB_URL]})", hint=hint)
    try:
        return Path(hf_hub_download(repository, file))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"the weights of `{name}` cannot be downloaded from https://huggingface.co/{repository}: {error}", hint=hint
        ) from error


def _load_strictly(model: Any, path: Path) -> None:
    """Load a file into a timm model, which renames and resamples the tensors that it knows; the head of a classifier is left out."""
    state = _adapted(model, path)
    classifiers = model.pretrained_cfg.get("classifier") or ()
    dropped = {f"{part}.{kind}" for part in ([classifiers] if isinstance(classifiers, str) else classifiers) for kind in ("weight", "bias")}
    state = {key: tensor for key, tensor in state.items() if key not in dropped}
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for problem, keys in [
        ("lacks", expected.keys() - state.keys()),
        ("has unknown keys", state.keys() - expected.keys()),
        ("has wrong shapes", _misshapen(state, expected)),
    ]:
        if keys:
            raise WeightsError(f"`{path}` is not a checkpoint of this timm model, it {problem}: {named(keys)}")
    model.load_state_dict({key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()})


def _adapted(model: Any, path: Path) -> dict[str, Tensor]:
    """The tensors in a file, after timm's own filter for checkpoints of this kind of model."""
    state: dict[str, Tensor] = dict(read_tensor_file(path).tensors)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return state
    try:
        return adapt(state, model) if len(inspect.signature(adapt).parameters) > 1 else adapt(state)
    except (KeyError, RuntimeError, AttributeError, ValueError, IndexError, AssertionError) as error:
        raise WeightsError(f"`{path}` is not a checkpoint of this timm model: {error}") from error


def _misshapen(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if key in expected}
    return [f"{key} {shapes[key]} instead of {shape}" for key, shape in expected.items() if shapes.get(key, shape) != shape]
