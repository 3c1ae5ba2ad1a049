"""Whitening written into the weights of a backbone: the same network, with its axes turned, moved and scaled."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dino_extract as dx
from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.weights.checkpoint import read_checkpoint, save_checkpoint

SCRIPT = Path(__file__).resolve().parent.parent / "weights" / "whiten.py"
CONFIG = BackboneConfig(embed_dim=64, depth=3, num_heads=4, num_registers=2, image_size=56, layer_scale_init=0.7)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("whiten", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network() -> DinoVisionTransformer:
    """A network all of whose weights matter, the biases and norms too."""
    torch.manual_seed(0)
    network = DinoVisionTransformer(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def tokens_of(network: DinoVisionTransformer, tensors: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """CLS tokens (200, D) and patch tokens (200, N, D) of made images, with the given weights instead of its own."""
    if tensors is not None:
        network = DinoVisionTransformer(CONFIG).eval()
        network.load_state_dict(tensors)
    images = torch.randn(200, 3, 56, 42, generator=torch.Generator().manual_seed(1))
    images *= torch.linspace(0.2, 3, 200)[:, None, None, None]
    with torch.inference_mode():
        tokens = network(images)
    return tokens.cls, tokens.patches


def test_without_scaling_only_the_axes_turn(script: ModuleType, network: DinoVisionTransformer) -> None:
    """With a power of 0 all distances between tokens are those before the weight and bias of the final norm."""
    cls, patches = tokens_of(network)
    new_cls, new_patches = tokens_of(network, script.whiten(network.state_dict(), CONFIG, cls, patches, power=0))

    old, new = (
        torch.cat([cls[:, None], patches], dim=1)[:8].flatten(0, 1),
        torch.cat([new_cls[:, None], new_patches], dim=1)[:8].flatten(0, 1),
    )
    normed = (old - network.norm.bias) / network.norm.weight
    torch.testing.assert_close(
        *(torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") for x in (new, normed)), atol=2e-4, rtol=1e-4
    )
    assert (new - normed).abs().max() > 0.1  # they did turn


def test_axes_are_decorrelated_and_evened_out(script: ModuleType, network: DinoVisionTransformer) -> None:
    """CLS tokens have a mean of 0, few correlations, and axes that vary more alike than the principal components did."""
    cls, patches = tokens_of(network)
    new_cls, new_patches = tokens_of(network, script.whiten(network.state_dict(), CONFIG, cls, patches, power=1, floor=0.001))

    assert new_cls.mean(0).abs().max() < 1e-3
    within = (new_patches - new_patches.mean(1, keepdim=True)).flatten(0, 1)
    covariance = (torch.cov(new_cls.T) + within.T @ within / len(within)).numpy()
    correlation = covariance / np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    assert np.median(np.abs(correlation - np.eye(64))) < 0.02
    assert np.abs(covariance.diagonal() - 1).max() < 0.1


def test_a_checkpoint_is_written_that_embeds(network: DinoVisionTransformer, tmp_path: Path) -> None:
    """As a command: a checkpoint and its tokens in, one of the same architecture and size out, whose file says what was done."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(80):
        Image.fromarray(rng.integers(0, 50 + 2 * number, (56, 56, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
    save_checkpoint(
        tmp_path / "old.safetensors", network.state_dict(), CONFIG, name="small", licence="MIT", record={"size": 56, "trained_by": "a test"}
    )
    dx.embed(
        str(tmp_path / "images"), str(tmp_path / "old.h5"), weights=str(tmp_path / "old.safetensors"), tokens="cls,patch", device="cpu"
    )

    subprocess.run(
        [sys.executable, str(SCRIPT), *(str(tmp_path / name) for name in ("old.safetensors", "old.h5", "new.safetensors"))],
        check=True,
        capture_output=True,
    )

    new = read_checkpoint(tmp_path / "new.safetensors")
    assert new.config == CONFIG
    assert (new.name, new.size, new.metadata["licence"], new.metadata["trained_by"]) == ("small", 56, "MIT", "a test")
    assert new.metadata["whitened"] == 0.75
    dx.embed(str(tmp_path / "images"), str(tmp_path / "new.h5"), weights=str(tmp_path / "new.safetensors"), device="cpu")
    with dx.open(str(tmp_path / "new.h5")) as file:
        assert np.abs(file.features[:].astype(np.float32).mean(0)).max() < 0.05
