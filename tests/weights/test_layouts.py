"""Every checkpoint layout becomes the official one, and features equal those of the library that the layout comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dino_extract.backbone import Backbone, BackboneConfig
from dino_extract.errors import WeightsError
from dino_extract.weights.checkpoint import backbone_config
from dino_extract.weights.layouts import ExportLayout, expected_shapes, from_official, infer_config, to_official
from dino_extract.weights.loading import load
from dino_extract.weights.registry import find_checkpoint
from dino_extract.weights.untrained import untrained_backbone

SMALL = BackboneConfig(embed_dim=128, depth=3, num_heads=2, image_size=70)
SMALL_SWIGLU = BackboneConfig(embed_dim=128, depth=2, num_heads=2, ffn="swiglu", image_size=70)
# A ViT-g of two blocks: the widths of the released one, and a small position grid.
TWO_BLOCK_G = BackboneConfig(embed_dim=1536, depth=2, num_heads=24, ffn="swiglu", image_size=70)

ALL_CONFIGS = [
    pytest.param(backbone_config(find_checkpoint("vits14")), id="vits14"),
    pytest.param(backbone_config(find_checkpoint("vits14-reg")), id="vits14-reg"),
    pytest.param(TWO_BLOCK_G, id="vitg14-of-2-blocks"),
    pytest.param(TWO_BLOCK_G.with_registers(), id="vitg14-reg-of-2-blocks"),
]


def random_state(config: BackboneConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state dict in which every tensor is filled with noise, so that no two can be mixed up."""
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator).to(dtype) * 0.02 for key, shape in expected_shapes(config).items()}


def assert_same_state(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Same keys, same types, same bits."""
    assert got.keys() == want.keys()
    for key, tensor in want.items():
        assert got[key].dtype == tensor.dtype
        assert torch.equal(got[key], tensor), key


def run(model: Backbone, images: Tensor) -> Tensor:
    """All final tokens (B, S, D) of one backbone."""
    with torch.inference_mode():
        tokens = model(images)
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)


@pytest.mark.parametrize("layout", ["official", "hf", "dino-extract"])
@pytest.mark.parametrize("config", ALL_CONFIGS)
def test_exported_weights_come_back_bit_for_bit(config: BackboneConfig, layout: ExportLayout) -> None:
    """Official keys, exported to a layout that keeps every tensor and read again, are the same bits and the same architecture."""
    state = random_state(config, torch.bfloat16)

    back = to_official(from_official(state, layout), origin="it")

    assert_same_state(back.tensors, state)
    assert back.config == config
    assert back.notes == ()


@pytest.mark.parametrize("config", ALL_CONFIGS)
def test_timm_export_comes_back_with_the_same_meaning(config: BackboneConfig) -> None:
    """Through timm's keys all tensors come back but the mask token, and the class token with its position added keeps its sum."""
    state = random_state(config)

    back = to_official(from_official(state, "timm"), origin="it")

    assert torch.equal(back.tensors["cls_token"] + back.tensors["pos_embed"][:, :1], state["cls_token"] + state["pos_embed"][:, :1])
    assert torch.equal(back.tensors["pos_embed"][:, 1:], state["pos_embed"][:, 1:])
    assert not back.tensors["mask_token"].any()
    assert "`mask_token`" in back.notes[0]
    changed = {"cls_token", "pos_embed", "mask_token"}
    assert_same_state({k: v for k, v in back.tensors.items() if k not in changed}, {k: v for k, v in state.items() if k not in changed})
    assert back.config == config


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["official", "hf", "timm", "dino-extract"])
def test_a_full_vitg_comes_back_through_every_layout(layout: ExportLayout) -> None:
    """The 1.1 billion parameters of ViT-g, in bfloat16, survive every layout."""
    config = backbone_config(find_checkpoint("vitg14-reg"))
    state = {key: torch.randn(shape, dtype=torch.bfloat16) for key, shape in expected_shapes(config).items()}

    back = to_official(from_official(state, layout), origin="it")

    assert back.config == config
    folded = {"cls_token", "pos_embed", "mask_token"} if layout == "timm" else set()
    assert_same_state({k: v for k, v in back.tensors.items() if k not in folded}, {k: v for k, v in state.items() if k not in folded})


def chunked(state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Keys as a training run with `block_chunks` writes them: `blocks.CHUNK.INDEX.`, the index counting through."""
    return {
        re.sub(r"^blocks\.(\d+)\.", lambda match: f"blocks.{int(match[1]) // size}.{match[1]}.", key): tensor
        for key, tensor in state.items()
    }


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: {"teacher": {f"backbone.{k}": v for k, v in chunked(state, 2).items()}}, id="teacher_checkpoint"),
        pytest.param(lambda state: {"model": state, "epoch": 3}, id="model"),
        pytest.param(lambda state: {key: torch.nn.Parameter(tensor) for key, tensor in state.items()}, id="parameters"),
        pytest.param(lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}, id="state_dict of DDP"),
        pytest.param(lambda state: {f"module.backbone._orig_mod.{k}": v for k, v in state.items()}, id="compiled in DDP"),
        pytest.param(
            lambda state: {"model": {f"{who}.backbone.{k}": v for who in ("student", "teacher") for k, v in state.items()}},
            id="student and teacher",
        ),
    ],
)
def test_training_checkpoints_are_unwrapped(wrap: Any, tmp_path: Path) -> None:
    """A .pth file of a training run gives the backbone inside it."""
    state = random_state(SMALL)
    torch.save(wrap(state), tmp_path / "checkpoint.pth")

    loaded = load(weights=tmp_path / "checkpoint.pth")

    assert_same_state(dict(loaded.module.state_dict()), state)


def test_teacher_is_preferred_to_student(tmp_path: Path) -> None:
    """Where a file has a student and a teacher, the teacher's weights are taken."""
    teacher, student = random_state(SMALL), {key: tensor + 1 for key, tensor in random_state(SMALL).items()}
    torch.save({"student": student, "teacher": teacher}, tmp_path / "both.pth")

    loaded = load(weights=tmp_path / "both.pth")

    assert_same_state(dict(loaded.module.state_dict()), teacher)


def test_heads_of_a_training_run_are_left_out_and_named() -> None:
    """Tensors of the DINO and iBOT heads are left out, and the notes say so."""
    tensors = {f"backbone.{key}": tensor for key, tensor in random_state(SMALL).items()}
    tensors |= {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.last_layer.weight": torch.zeros(2, 2)}

    converted = to_official(tensors, origin="it")

    assert converted.notes == ("2 tensors of `dino_head`, `ibot_head` in the file were left out",)


def test_architecture_is_inferred_from_the_tensors() -> None:
    """Width, depth, feed-forward network, registers, grid and interpolation follow from the tensors of all released models."""
    for name in ["vits14", "vitb14-reg", "vitl14", "vitg14", "vitg14-reg", "tiny"]:
        config = backbone_config(find_checkpoint(name))
        state = {key: torch.empty(shape, device="meta") for key, shape in expected_shapes(config).items()}

        assert infer_config(state, origin="it") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.bias"), "it lacks `norm.bias`"),
        (lambda state: state.update(extra=torch.zeros(1)), "it has keys that no DINOv2 backbone has: `extra`"),
        (lambda state: state.update({"norm.bias": torch.zeros(3)}), r"wrong shape: `norm.bias \(3,\) instead of \(128,\)`"),
        (
            lambda state: state.update({"norm.bias": torch.zeros(128, dtype=torch.int64)}),
            "not floating-point numbers: `norm.bias torch.int64`",
        ),
        (lambda state: state["norm.bias"].fill_(float("nan")), "not finite in `norm.bias`"),
        (lambda state: state.pop("patch_embed.proj.weight"), "is not a DINOv2 checkpoint: no patch embedding among its"),
        (lambda state: state.update(pos_embed=torch.zeros(1, 24, 128)), "24 positions, expected one and those of a square patch grid"),
        (lambda state: [state.pop(key) for key in list(state) if key.startswith("blocks.1.")], r"lacks .*\(14 in all\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error_that_names_keys(change: Any, message: str) -> None:
    """Missing, unknown, misshapen, integer and diverged tensors are named."""
    state = random_state(SMALL)
    change(state)

    with pytest.raises(WeightsError, match=message):
        to_official(state, origin="it")


def test_chunks_that_count_from_zero_are_not_merged() -> None:
    """Chunks whose blocks are numbered anew would overwrite each other, and are refused."""
    state = {re.sub(r"^blocks\.(\d)\.", r"blocks.\1.0.", key): tensor for key, tensor in random_state(SMALL).items()}

    with pytest.raises(WeightsError, match=r"only .* are different without wrappers and chunks"):
        to_official(state, origin="it")


def test_hf_keys_of_memory_are_read() -> None:
    """The state dict that transformers 5 has in memory, with other names than its files, gives the same weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14, use_swiglu_ffn=True
    )
    theirs = transformers.Dinov2Model(config).state_dict()

    converted = to_official(theirs, origin="it")

    query, key, value = converted.tensors["blocks.1.attn.qkv.weight"].chunk(3)
    assert torch.equal(query, theirs["encoder.layer.1.attention.q_proj.weight"])
    assert torch.equal(key, theirs["encoder.layer.1.attention.k_proj.weight"])
    assert torch.equal(value, theirs["encoder.layer.1.attention.v_proj.weight"])
    gate, up = converted.tensors["blocks.1.mlp.w12.weight"].chunk(2)
    assert torch.equal(gate, theirs["encoder.layer.1.mlp.gate_proj.weight"])
    assert torch.equal(up, theirs["encoder.layer.1.mlp.up_proj.weight"])


def noise(model: torch.nn.Module) -> None:
    """Fill all parameters of a model with noise: start values have zeros and ones that hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn(parameter.shape, generator=generator)
            is_scale = any(part in name for part in ("gamma", "lambda1")) or ("norm" in name and name.endswith("weight"))
            parameter.copy_(1 + 0.1 * spread if is_scale else 0.05 * spread)


@pytest.mark.parametrize(
    ("kind", "settings", "size"),
    [
        pytest.param(
            "Dinov2", {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518}, (518, 518), id="plain"
        ),
        pytest.param("Dinov2", {"use_swiglu_ffn": True}, (70, 70), id="plain, SwiGLU"),
        pytest.param(
            "Dinov2WithRegisters",
            {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518},
            (224, 280),
            id="registers",
        ),
        pytest.param("Dinov2WithRegisters", {"use_swiglu_ffn": True}, (84, 56), id="registers, SwiGLU"),
    ],
)
def test_features_equal_those_of_transformers(kind: str, settings: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    """A folder that transformers saved gives the tokens that transformers gives."""
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 70, "patch_size": 14} | settings
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    noise(theirs)
    theirs.save_pretrained(tmp_path)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))

    loaded = load(weights=tmp_path)

    with torch.inference_mode():
        want = theirs(images).last_hidden_state
    torch.testing.assert_close(run(loaded.module, images), want, rtol=0, atol=2e-5)


def test_a_classifier_of_transformers_gives_its_backbone(tmp_path: Path) -> None:
    """The backbone of an image classifier is read, its classifier named as left out."""
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
    theirs = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**settings)).eval()
    noise(theirs)
    theirs.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 70, 70)

    loaded = load(weights=tmp_path)

    with torch.inference_mode():
        want = theirs.dinov2(images).last_hidden_state
    torch.testing.assert_close(run(loaded.module, images), want, rtol=0, atol=2e-5)
    assert loaded.notes == ("2 tensors of `classifier` in the file were left out",)


def test_heads_are_read_from_the_config_beside_the_file(tmp_path: Path) -> None:
    """A Hugging Face model whose heads are not 64 wide is computed with the number of heads that its config names."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Dinov2Model(
        transformers.Dinov2Config(hidden_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=70, patch_size=14)
    ).eval()
    noise(theirs)
    theirs.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 70, 70)

    loaded = load(weights=tmp_path)

    with torch.inference_mode():
        want = theirs(images).last_hidden_state
    torch.testing.assert_close(run(loaded.module, images), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_patch14_dinov2", (518, 518)),
        ("vit_small_patch14_reg4_dinov2", (518, 518)),
        ("vit_small_patch14_reg4_dinov2", (224, 280)),
    ],
)
def test_features_equal_those_of_timm(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """A file that timm saved gives the tokens that timm gives: plain models at 518 pixels, those with registers at any size."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    noise(theirs)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))

    loaded = load("vits14-reg" if "reg" in name else "vits14", weights=tmp_path / "model.safetensors")

    with torch.inference_mode():
        want = theirs.forward_features(images)
    torch.testing.assert_close(run(loaded.module, images), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_timm_computes_the_same_with_an_exported_giant(registers: int) -> None:
    """Two blocks of ViT-g, exported to timm and loaded there strictly, give the same tokens."""
    timm = pytest.importorskip("timm")
    config = TWO_BLOCK_G.with_registers(registers) if registers else TWO_BLOCK_G
    ours = untrained_backbone(config, seed=0)
    noise(ours)
    name = "vit_giant_patch14_reg4_dinov2" if registers else "vit_giant_patch14_dinov2"
    theirs = timm.create_model(name, num_classes=0, depth=2, img_size=70).eval()
    images = torch.randn(1, 3, 70, 70)

    theirs.load_state_dict(from_official(ours.state_dict(), "timm"))

    with torch.inference_mode():
        torch.testing.assert_close(theirs.forward_features(images), run(ours, images), rtol=0, atol=1e-4)
