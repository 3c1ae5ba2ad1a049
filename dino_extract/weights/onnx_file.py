"""A backbone as an ONNX file, for runtimes without torch; compared with the backbone before it gets its name."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dino_extract.backbone import DinoVisionTransformer
from dino_extract.errors import ConfigError, WeightsError
from dino_extract.files import check_target, replace_atomically
from dino_extract.images.preprocess import Preprocess, parse_size
from dino_extract.tokens import KIND_OF
from dino_extract.weights.loading import LoadedBackbone

MAX_DIFFERENCE = 1e-4  # of a token's norm, between the file and the backbone; rounding gives some 1e-6
MAX_INLINE_BYTES = 1_800_000_000  # an ONNX file holds at most 2 GB; more numbers go into a second file beside it
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxFile:
    """The files that were written.

    Args:
        path: the file.
        data_path: the file beside it with the numbers, where they are too many for one.
        max_difference: largest difference of a token to the backbone's, as a share of its norm, in onnxruntime on a CPU.
    """

    path: Path
    data_path: Path | None
    max_difference: float


class NamedOutputs(nn.Module):
    """A backbone that gives a dictionary of token tensors by the dataset names of our HDF5 files."""

    def __init__(self, backbone: DinoVisionTransformer) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Tokens of images (B, 3, H, W): CLS (B, D), registers (B, R, D) if there are any, patches (B, h, w, D)."""
        tokens, patch = self.backbone(images), self.backbone.patch_size
        grid = (images.shape[2] // patch, images.shape[3] // patch)
        kinds = [KIND_OF[name] for name in ("cls", "patch", "registers")]
        return {kind.dataset: kind.select(tokens, grid) for kind in kinds if self.backbone.num_registers or not kind.needs_registers}


def write_onnx(model: LoadedBackbone, target: Path, *, size: str | int | None = None, overwrite: bool = False) -> OnnxFile:
    """Write a backbone for one image size and any number of images.

    The input `images` is (B, 3, H, W) float32, RGB, normalised as the file's metadata says; the outputs are named as the datasets of our
    HDF5 files. Positions are interpolated for the size and stored.

    Args:
        model: from `load`.
        target: the `.onnx` file; it, and its data file, are there whole or not at all.
        size: side in pixels, or HEIGHTxWIDTH; by default the model's own.
        overwrite: replace an existing file.

    Raises:
        ConfigError: a model of another library, a size that does not fit, another suffix, or the extra `onnx` is not installed.
        WeightsError: the target is there, cannot be written, or gives something else than the backbone.
    """
    backbone = model.module
    if not isinstance(backbone, DinoVisionTransformer):
        raise ConfigError(
            f"`{model.name}` is a model of another library, only DINOv2 models are written", hint="timm has an export of its own"
        )
    if target.suffix != ".onnx":
        raise ConfigError(f"`{target}` does not end in `.onnx`")
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise ConfigError(f"the package `{missing[0]}` is not installed", hint="pip install 'dino-extract[onnx]'")
    data_target = target.with_name(target.name + ".data")
    if data_target.exists() and not overwrite:
        raise WeightsError(f"`{data_target}` is already there", hint="`overwrite=True` replaces it")
    check_target(target, "model", overwrite=overwrite)
    height, width = parse_size(model.size if size is None else size)
    pixels = Preprocess(height=height, width=width, patch=backbone.patch_size, mean=backbone.mean, std=backbone.std)
    about = {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "licence": model.licence,
        "preprocessing": json.dumps(pixels.as_record(), sort_keys=True),
    }
    network = NamedOutputs(backbone).eval()
    examples = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with replace_atomically(target, "model", overwrite=overwrite, error=WeightsError) as draft:
        _export(network, examples, draft, about)
        difference = _difference(network, examples[:1], draft)
        if difference > MAX_DIFFERENCE:
            raise WeightsError(f"onnxruntime gives tokens that differ from the model's by {difference:.1e} of their norm")
        data = f"{draft}.data"
        has_data = os.path.exists(data)
        if has_data:  # first, so that the numbers are there when the model appears
            with replace_atomically(data_target, "model", overwrite=overwrite, error=WeightsError) as data_draft:
                os.replace(data, data_draft)
    if not has_data:
        data_target.unlink(missing_ok=True)  # of the file that was replaced
    return OnnxFile(target, data_target if has_data else None, difference)


def _export(network: NamedOutputs, examples: Tensor, path: str, about: dict[str, str]) -> None:
    with torch.inference_mode():
        names = list(network(examples[:1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = torch.onnx.export(
            network,
            (examples,),
            dynamo=True,
            input_names=["images"],
            output_names=names,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None, "with `dynamo` it gives a program"
    program.model.metadata_props.update(about)
    nbytes = sum(tensor.nbytes for tensor in network.state_dict().values())
    program.save(path, external_data=nbytes > MAX_INLINE_BYTES)


def _difference(network: NamedOutputs, images: Tensor, path: str) -> float:
    """The largest difference of a token in the file to the backbone's, as a share of its norm, on another number of images."""
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(names, {"images": images.numpy()}), strict=True))
    with torch.inference_mode():
        want = {name: rows.numpy() for name, rows in network(images).items()}
    assert got.keys() == want.keys(), f"expected the outputs {sorted(want)}, got {sorted(got)}"
    return max(float((np.abs(got[name] - rows).max(axis=-1) / np.linalg.norm(rows, axis=-1)).max()) for name, rows in want.items())
