"""Converted files are read by the libraries they are made for, which give the same features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dino_extract.backbone import BackboneConfig
from dino_extract.errors import ConfigError, WeightsError
from dino_extract.weights.checkpoint import read_checkpoint, save_checkpoint
from dino_extract.weights.export import INTERPOLATION_NOTE, convert
from dino_extract.weights.loading import load_backbone
from dino_extract.weights.untrained import untrained_backbone

PLAIN = BackboneConfig(embed_dim=128, depth=2, num_heads=2, image_size=70)
CONFIGS = [
    pytest.param(PLAIN, id="plain"),
    pytest.param(PLAIN.with_registers(), id="registers"),
    pytest.param(BackboneConfig(embed_dim=128, depth=2, num_heads=2, ffn="swiglu", image_size=70).with_registers(), id="swiglu, registers"),
]


def saved(folder: Path, config: BackboneConfig) -> Path:
    """A file of ours with random weights."""
    path = folder / "ours.safetensors"
    save_checkpoint(path, untrained_backbone(config, 0).state_dict(), config, name="some", licence="CC0", record={"epoch": 3})
    return path


@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_loads_a_converted_folder(config: BackboneConfig, tmp_path: Path) -> None:
    """`from_pretrained` of a converted folder, with nothing missing, gives the same tokens."""
    transformers = pytest.importorskip("transformers")
    source = saved(tmp_path, config)
    images = torch.randn(1, 3, 70, 70)

    convert(source, tmp_path / "hf", "hf")

    kind = transformers.Dinov2WithRegistersModel if config.num_registers else transformers.Dinov2Model
    theirs, report = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        got = theirs.eval()(images).last_hidden_state
        want = load_backbone(weights=source)(images)
    torch.testing.assert_close(got[:, 0], want.cls, rtol=0, atol=2e-5)
    torch.testing.assert_close(got[:, 1 + config.num_registers :], want.patches, rtol=0, atol=2e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_timm_loads_a_converted_file(registers: int, tmp_path: Path) -> None:
    """A converted file is loaded by timm strictly and gives the same tokens."""
    timm = pytest.importorskip("timm")
    source = saved(tmp_path, PLAIN.with_registers(registers) if registers else PLAIN)
    images = torch.randn(1, 3, 70, 70)

    written, _ = convert(source, tmp_path / "timm.safetensors", "timm")

    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    theirs = timm.create_model(name, num_classes=0, img_size=70, embed_dim=128, depth=2, num_heads=2).eval()
    timm.models.load_checkpoint(theirs, str(written), strict=True)
    with torch.inference_mode():
        got = theirs.forward_features(images)
        want = load_backbone(weights=source)(images)
    torch.testing.assert_close(got[:, 0], want.cls, rtol=0, atol=2e-5)
    torch.testing.assert_close(got[:, 1 + registers :], want.patches, rtol=0, atol=2e-5)


def test_official_pth_is_a_plain_state_dict(tmp_path: Path) -> None:
    """The official file is a dictionary that `load_state_dict` takes strictly."""
    source = saved(tmp_path, PLAIN)
    model = untrained_backbone(PLAIN, 1)

    written, _ = convert(source, tmp_path / "official.pth", "official")

    model.load_state_dict(torch.load(written, weights_only=True))
    assert torch.equal(model.cls_token, untrained_backbone(PLAIN, 0).cls_token)


def test_storage_type_is_chosen(tmp_path: Path) -> None:
    """`dtype` is the type of every tensor in the file."""
    source = saved(tmp_path, PLAIN)

    written, _ = convert(source, tmp_path / "half.safetensors", "dino-extract", store_dtype="bfloat16")

    with safe_open(written, "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118 - not a dict


def test_our_layout_keeps_what_was_known(tmp_path: Path) -> None:
    """Name, licence and record of one of our files stay, unless a licence is given, and the file it was made from is noted."""
    source = saved(tmp_path, PLAIN)

    written, _ = convert(source, tmp_path / "again.safetensors", "dino-extract")
    convert(source, tmp_path / "free.safetensors", "dino-extract", licence="MIT", size=98)

    with safe_open(written, "pt") as file:
        said = json.loads(file.metadata()["dino_extract"])
    assert (said["name"], said["licence"], said["epoch"]) == ("some", "CC0", 3)
    assert read_checkpoint(written).config == PLAIN
    assert len(said["source_sha256"]) == 64
    free = read_checkpoint(tmp_path / "free.safetensors").metadata
    assert (free["licence"], free["size"]) == ("MIT", 98)


def test_different_interpolation_of_others_is_told(tmp_path: Path) -> None:
    """Who exports a model without registers to another library is told that features differ there."""
    source = saved(tmp_path, PLAIN)

    _, notes = convert(source, tmp_path / "x.safetensors", "timm")

    assert notes == (INTERPOLATION_NOTE,)


def test_existing_file_is_kept(tmp_path: Path) -> None:
    """A file that is there is only replaced on demand."""
    source = saved(tmp_path, PLAIN)
    (tmp_path / "x.safetensors").write_bytes(b"precious")

    with pytest.raises(WeightsError, match="is already there"):
        convert(source, tmp_path / "x.safetensors", "timm")

    assert (tmp_path / "x.safetensors").read_bytes() == b"precious"


def test_suffix_must_go_with_the_layout(tmp_path: Path) -> None:
    """Files for timm are safetensors."""
    with pytest.raises(ConfigError, match=r"does not end in `.safetensors`"):
        convert(saved(tmp_path, PLAIN), tmp_path / "x.pth", "timm")
