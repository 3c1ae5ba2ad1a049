"""A checkpoint as a backbone understands it: any file or run folder in, our own safetensors out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dino_extract.backbone import BackboneConfig
from dino_extract.config import DEFAULT_SIZE
from dino_extract.errors import ConfigError, WeightsError
from dino_extract.options import checked_values
from dino_extract.weights.files import read_tensor_file, tensors_sha256, write_safetensors
from dino_extract.weights.layouts import KeyLayout, check_tensors, infer_config, to_official
from dino_extract.weights.registry import Checkpoint, checkpoints

# What two backbones must have in common for weights of one to be weights of the other; the position grid is interpolated.
ARCHITECTURE_FIELDS = ("embed_dim", "depth", "num_heads", "ffn", "num_registers", "patch_size")
# What our own files say in addition to what the tensors show; drop path is a matter of training.
RECORDED_FIELDS = ("num_heads", "interpolate_offset", "interpolate_antialias", "layer_scale_init")


@dataclass(frozen=True)
class BackboneCheckpoint:
    """Weights of a backbone in official keys, and what is known about them.

    Args:
        path: the file they were read from.
        tensors: in official keys, types as stored.
        metadata: what dino-extract wrote about them; empty for files that others made.
        notes: what was left out or filled in while reading, for the user.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: BackboneConfig
    layout: KeyLayout
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in its metadata, else that of the model with the same architecture, else one made of its dimensions."""
        return str(self.metadata.get("name") or architecture_name(self.config))

    @property
    def size(self) -> int:
        """Side in pixels of the images that the model is best given: what its metadata say, else the table of its name, else 224."""
        size = self.metadata.get("size")
        if isinstance(size, int) and size > 0:
            return size
        known = checkpoints().get(str(self.metadata.get("name")))
        return DEFAULT_SIZE if known is None else known.size


def backbone_config(checkpoint: Checkpoint) -> BackboneConfig:
    """The architecture of a model of the table."""
    return BackboneConfig(**checkpoint.architecture)


def architecture_name(config: BackboneConfig) -> str:
    """The name of the model of the table with this architecture, else one made of its dimensions."""
    for checkpoint in checkpoints().values():
        if not _differences(backbone_config(checkpoint), config):
            return checkpoint.name
    registers = f"-reg{config.num_registers}" if config.num_registers else ""
    return f"vit-d{config.embed_dim}-l{config.depth}-p{config.patch_size}{registers}"


def checkpoint_file(path: Path) -> Path:
    """The weights file that a path means: itself, or `model.safetensors` in the folder of a training run or Hugging Face model.

    Raises:
        WeightsError: there is no such file.
    """
    if path.is_dir():
        inside = path / "model.safetensors"
        if not inside.is_file():
            raise WeightsError(
                f"folder `{path}` has no `model.safetensors`", hint="a fine-tuning run writes it; a single checkpoint file works as well"
            )
        return inside
    if not path.is_file():
        raise WeightsError(f"there is no file `{path}`")
    return path


def read_checkpoint(path: Path, expected: Checkpoint | None = None) -> BackboneCheckpoint:
    """The weights in a file or folder, of whatever layout, checked to be complete.

    Args:
        path: a checkpoint file, or a folder with `model.safetensors`.
        expected: the model that they must be of.

    Raises:
        WeightsError: the file is missing or damaged, its layout is unknown, or it is of another architecture.
    """
    path = checkpoint_file(path)
    origin = f"`{path}`"
    file = read_tensor_file(path)
    if file.metadata is not None:
        config = _recorded_config(file.metadata, file.tensors, origin)
        check_tensors(file.tensors, config, origin)
        if file.metadata.get("tensors_sha256") != tensors_sha256(file.tensors):
            raise WeightsError(
                f"{origin} is damaged: its tensors are not those that were written",
                hint="get the file again; `dino-extract weights pull --overwrite NAME` replaces a downloaded one",
            )
        found = BackboneCheckpoint(path, file.tensors, config, "dino-extract", file.metadata)
    else:
        converted = to_official(file.tensors, origin=origin, num_heads=_heads_beside(path))
        notes = (f"the weights are those of `{file.container}` in the file",) if file.container else ()
        found = BackboneCheckpoint(path, converted.tensors, converted.config, converted.layout, notes=(*notes, *converted.notes))
    if expected is not None and (differences := _differences(backbone_config(expected), found.config)):
        raise WeightsError(
            f"{origin} is not a `{expected.name}` checkpoint: {'; '.join(differences)}",
            hint=f"its architecture is that of `{architecture_name(found.config)}`",
        )
    return found


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: BackboneConfig,
    *,
    name: str,
    licence: str,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write weights in official keys as the safetensors file that `--weights` takes without further words.

    Args:
        path: of the file, replaced in one step.
        tensors: the state dict of a `DinoVisionTransformer`, float32, float16 or bfloat16.
        config: the architecture, kept in the header.
        name: the model that they started from, such as `vits14`.
        licence: under which they may be used.
        record: more to keep in the header, JSON values only.

    Raises:
        WeightsError: tensors and config do not fit each other, or the file cannot be written.
    """
    check_tensors(tensors, config, "the model to be saved")
    write_safetensors(path, tensors, {**(record or {}), "name": name, "licence": licence, "config": asdict(config)})


def _differences(expected: BackboneConfig, found: BackboneConfig) -> list[str]:
    pairs = [(name, getattr(expected, name), getattr(found, name)) for name in ARCHITECTURE_FIELDS]
    return [f"{name} is {got}, expected {want}" for name, want, got in pairs if want != got]


def _recorded_config(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str) -> BackboneConfig:
    """What the tensors show, with what only the metadata can tell; both must agree where they overlap."""
    try:
        said = checked_values(BackboneConfig, metadata["config"])
    except (KeyError, AttributeError, TypeError, ConfigError) as error:
        raise WeightsError(f"{origin} has no usable `config` in its metadata") from error
    heads = said.get("num_heads")
    shown = infer_config(tensors, origin=origin, num_heads=heads)
    config = replace(shown, **{key: said[key] for key in RECORDED_FIELDS if key in said})
    if differences := [key for key in ARCHITECTURE_FIELDS if key in said and said[key] != getattr(config, key)]:
        raise WeightsError(f"{origin} has metadata that contradict its tensors in {', '.join(differences)}")
    return config


def _heads_beside(path: Path) -> int | None:
    """The number of attention heads in the Hugging Face `config.json` beside a file, or None where there is none."""
    config_path = path.with_name("config.json")
    if not config_path.is_file():
        return None
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"`{config_path}` is not JSON") from error
    is_dinov2 = isinstance(config, dict) and str(config.get("model_type", "")).startswith("dinov2")
    heads = config.get("num_attention_heads") if is_dinov2 else None
    return heads if isinstance(heads, int) and heads > 0 else None
