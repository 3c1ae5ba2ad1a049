"""A model written as ONNX gives in onnxruntime what it gives in torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dino_extract.backbone import BackboneConfig
from dino_extract.errors import ConfigError, DinoExtractError, WeightsError
from dino_extract.weights import LoadedBackbone, untrained_backbone
from dino_extract.weights.onnx_file import write_onnx
from tests.sample_images import MeanColour

PLAIN = BackboneConfig(embed_dim=64, depth=2, num_heads=2, image_size=70)
GATED = BackboneConfig(embed_dim=64, depth=2, num_heads=2, ffn="swiglu", image_size=70).with_registers()


def loaded(config: BackboneConfig) -> LoadedBackbone:
    """Random weights with a LayerScale at which every block counts."""
    backbone = untrained_backbone(config, 0)
    for block in backbone.blocks:
        torch.nn.init.ones_(block.ls1.gamma)
        torch.nn.init.ones_(block.ls2.gamma)
    return LoadedBackbone(backbone, "small", "random:0", "random weights", "none", 56)


@pytest.mark.parametrize(("config", "size"), [(PLAIN, (56, 84)), (GATED, (70, 70))])
def test_the_file_gives_the_tokens_of_the_model(tmp_path: Path, config: BackboneConfig, size: tuple[int, int]) -> None:
    """For one image and for five, positions interpolated or not, with registers and without; what is in it is said in its metadata."""
    model = loaded(config)

    written = write_onnx(model, tmp_path / "small.onnx", size=f"{size[0]}x{size[1]}")

    assert written.max_difference < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            tokens = model.module(images)
        want = {"features": tokens.cls, "patch_features": tokens.patches.view(count, size[0] // 14, size[1] // 14, 64)}
        if config.num_registers:
            want["register_features"] = tokens.registers
        names = [output.name for output in session.get_outputs()]
        got = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
        assert got.keys() == want.keys()
        for name, rows in want.items():
            np.testing.assert_allclose(got[name], rows.numpy(), atol=1e-4)
    said = session.get_modelmeta().custom_metadata_map
    assert (said["model"], said["weights_sha256"], said["licence"]) == ("small", "random:0", "none")
    assert json.loads(said["preprocessing"])["height"] == size[0]


def test_many_numbers_go_into_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too large for one file becomes two, which onnx finds again."""
    monkeypatch.setattr("dino_extract.weights.onnx_file.MAX_INLINE_BYTES", 1000)

    written = write_onnx(loaded(PLAIN), tmp_path / "small.onnx")

    assert written.data_path == tmp_path / "small.onnx.data"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.onnx.data"]
    assert written.path.stat().st_size < written.data_path.stat().st_size
    onnx.checker.check_model(str(written.path))


def test_a_data_file_is_replaced_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stands there stops the export; with `overwrite` it goes, also where the new file needs none."""
    (tmp_path / "small.onnx.data").write_bytes(b"mine")
    with pytest.raises(WeightsError, match=r"`.*small\.onnx\.data` is already there"):
        write_onnx(loaded(PLAIN), tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx.data").read_bytes() == b"mine"

    with monkeypatch.context() as patch:
        patch.setattr("dino_extract.weights.onnx_file.MAX_INLINE_BYTES", 1000)
        write_onnx(loaded(PLAIN), tmp_path / "small.onnx", overwrite=True)
    write_onnx(loaded(PLAIN), tmp_path / "small.onnx", overwrite=True)

    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_a_file_that_gives_something_else_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the runtime differs from the model, that is an error, and nothing is left behind; an older file stays."""
    (tmp_path / "small.onnx").write_bytes(b"older")
    monkeypatch.setattr("dino_extract.weights.onnx_file.MAX_DIFFERENCE", 0.0)

    with pytest.raises(WeightsError, match="differ from the model's by"):
        write_onnx(loaded(PLAIN), tmp_path / "small.onnx", overwrite=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Another suffix, a size between patches, a file that is there, a folder that is not, and a model of another library."""
    model = loaded(PLAIN)
    (tmp_path / "there.onnx").touch()

    with pytest.raises(ConfigError, match=r"does not end in `\.onnx`"):
        write_onnx(model, tmp_path / "small.pt")
    with pytest.raises(ConfigError, match="not a multiple of the patch size"):
        write_onnx(model, tmp_path / "small.onnx", size=60)
    with pytest.raises(DinoExtractError, match="already there"):
        write_onnx(model, tmp_path / "there.onnx")
    with pytest.raises(DinoExtractError, match="cannot be written"):
        write_onnx(model, tmp_path / "none" / "small.onnx")
    with pytest.raises(ConfigError, match="another library"):
        write_onnx(LoadedBackbone(MeanColour(), "timm/x", "", "", ""), tmp_path / "small.onnx")
