"""A checkpoint written in the layout of another library."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from dino_extract.backbone import BackboneConfig
from dino_extract.config import IMAGENET_MEAN, IMAGENET_STD
from dino_extract.errors import ConfigError, WeightsError
from dino_extract.options import checked
from dino_extract.weights.checkpoint import BackboneCheckpoint, read_checkpoint, save_checkpoint
from dino_extract.weights.checksum import file_sha256
from dino_extract.weights.files import write_pickle, write_safetensors
from dino_extract.weights.layouts import ExportLayout, from_official

StoreDtype = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[StoreDtype, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

INTERPOLATION_NOTE = (
    "without registers, timm and transformers give the features of dino-extract only at the native size of the model: "
    "they interpolate positions in another way"
)


def convert(
    source: Path,
    target: Path,
    to: ExportLayout,
    *,
    store_dtype: StoreDtype | None = None,
    licence: str | None = None,
    size: int | None = None,
    overwrite: bool = False,
) -> tuple[Path, tuple[str, ...]]:
    """Write the weights in a file or folder in another layout; gives back the file written and what the user should know.

    Args:
        source: a checkpoint of any layout.
        target: a `.safetensors` file; with `official` also a `.pth` file; with `hf` otherwise a folder, which gets its
            `config.json` and `preprocessor_config.json` as well, so that transformers loads it.
        to: the layout.
        store_dtype: type of the stored numbers, by default that of the source.
        licence: under which the weights may be used, where the source does not say it right; only `dino-extract` files have a place for it.
        size: side in pixels that `embed` gives images unless `size` says otherwise; the same holds.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the layout or type is unknown, or the suffix of the target does not go with it.
        WeightsError: the source cannot be read, or the target is there or cannot be written.
    """
    checked("to", ExportLayout, to)
    checked("store_dtype", StoreDtype | None, store_dtype)
    written = _written_file(target, to)
    recorded = {name: value for name, value in (("licence", licence), ("size", size)) if value is not None}
    if recorded and to != "dino-extract":
        raise ConfigError(f"`{next(iter(recorded))}` is recorded only in the layout `dino-extract`, got `to` = `{to}`")
    if written.exists() and not overwrite:
        raise WeightsError(f"`{written}` is already there", hint="`overwrite=True` replaces it")
    checkpoint = read_checkpoint(source)
    checkpoint = replace(checkpoint, metadata={**checkpoint.metadata, **recorded})
    _write(checkpoint, written, to, DTYPES[store_dtype] if store_dtype else None)
    if written != target:
        _write_json(target / "config.json", _hf_config(checkpoint.config))
        _write_json(target / "preprocessor_config.json", _hf_preprocessor())
    is_inexact = to in ("hf", "timm") and checkpoint.config.num_registers == 0
    return written, checkpoint.notes + ((INTERPOLATION_NOTE,) if is_inexact else ())


def _written_file(target: Path, to: ExportLayout) -> Path:
    """The file of the weights: `target`, or where that is the folder of a model of transformers a file in it."""
    if to == "hf" and target.suffix != ".safetensors":
        return target / "model.safetensors"
    suffixes = (".safetensors", ".pth") if to == "official" else (".safetensors",)
    if target.suffix not in suffixes:
        raise ConfigError(f"`{target}` does not end in {' or '.join(f'`{suffix}`' for suffix in suffixes)}")
    return target


def _write(checkpoint: BackboneCheckpoint, path: Path, to: ExportLayout, dtype: torch.dtype | None) -> None:
    # Folding positions adds numbers: in full precision, before they are stored in fewer bits.
    exact = {key: tensor.float() for key, tensor in checkpoint.tensors.items()} if to == "timm" else checkpoint.tensors
    stored = {key: dtype or tensor.dtype for key, tensor in checkpoint.tensors.items()}
    exported = from_official(exact, to)
    default = dtype or next(iter(stored.values()))
    tensors = {key: tensor.to(dtype or stored.get(key, default if to == "timm" else tensor.dtype)) for key, tensor in exported.items()}
    if to == "dino-extract":
        known = {key: value for key, value in checkpoint.metadata.items() if key not in ("format", "config", "tensors_sha256")}
        record = {"source_sha256": file_sha256(checkpoint.path), "source_layout": checkpoint.layout} | known
        licence = str(record.pop("licence", "unknown"))
        record.pop("name", None)
        save_checkpoint(path, tensors, checkpoint.config, name=checkpoint.name, licence=licence, record=record)
    elif path.suffix == ".pth":
        write_pickle(path, tensors)
    else:
        write_safetensors(path, tensors)


def _hf_config(config: BackboneConfig) -> dict[str, Any]:
    kind = "Dinov2WithRegisters" if config.num_registers else "Dinov2"
    settings: dict[str, Any] = {
        "architectures": [f"{kind}Model"],
        "model_type": "dinov2_with_registers" if config.num_registers else "dinov2",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "use_swiglu_ffn": config.ffn == "swiglu",
    }
    return settings | ({"num_register_tokens": config.num_registers} if config.num_registers else {})


def _hf_preprocessor() -> dict[str, Any]:
    """The official evaluation transform in the words of transformers."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_convert_rgb": True,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"`{path}` cannot be written: {error.strerror}") from error
