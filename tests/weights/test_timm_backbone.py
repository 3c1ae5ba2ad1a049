"""Any timm vision transformer gives the tokens that timm gives, in our interface."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dino_extract.errors import ConfigError, WeightsError
from dino_extract.weights.loading import load
from dino_extract.weights.timm_backbone import TimmBackbone


def backbone(name: str) -> TimmBackbone:
    """A small untrained timm model behind our interface."""
    module = load(f"timm/{name}", random_weights=0).module
    assert isinstance(module, TimmBackbone)
    return module


@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("vit_tiny_patch16_224", 0),
        ("eva02_tiny_patch14_224", 0),
        ("vit_small_patch16_dinov3", 4),
        ("vit_small_patch14_reg4_dinov2", 4),
        ("deit_tiny_distilled_patch16_224", 1),
    ],
)
def test_tokens_are_those_of_timm(name: str, registers: int) -> None:
    """Class, register and patch tokens are the rows of `forward_features`, at a size that is not the model's own."""
    module = backbone(name)
    images = torch.randn(2, 3, 4 * module.patch_size, 5 * module.patch_size)

    with torch.inference_mode():
        tokens = module(images)
        want = module.model.forward_features(images)

    assert module.num_registers == registers
    assert torch.equal(tokens.cls, want[:, 0])
    assert torch.equal(tokens.registers, want[:, 1 : 1 + registers])
    assert torch.equal(tokens.patches, want[:, 1 + registers :])
    assert tokens.patches.shape == (2, 20, module.embed_dim)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_last_intermediate_layer_is_the_final_one(name: str) -> None:
    """The normed tokens after the last block are the final tokens, and layers come in the order asked for."""
    module = backbone(name)
    images = torch.randn(1, 3, 64, 64)

    with torch.inference_mode():
        last, first = module.intermediate_layers(images, [module.depth - 1, 0])
        final = module(images)

    torch.testing.assert_close(last.cls, final.cls)
    torch.testing.assert_close(last.registers, final.registers)
    torch.testing.assert_close(last.patches, final.patches)
    assert not torch.allclose(first.patches, final.patches)


def test_model_without_class_token_gives_its_pooled_output() -> None:
    """SigLIP has no class token: `cls` is the output of its attention pooling."""
    module = backbone("vit_base_patch16_siglip_224")
    images = torch.randn(1, 3, 64, 64)

    with torch.inference_mode():
        tokens = module(images)
        want = module.model(images)

    assert torch.equal(tokens.cls, want)
    assert tokens.registers.shape[1] == 0
    assert tokens.patches.shape[1] == 16


def test_statistics_and_size_are_those_of_the_model() -> None:
    """Mean, standard deviation and default size come from timm's configuration."""
    module = backbone("vit_tiny_patch16_224")

    assert module.mean == (0.5, 0.5, 0.5)
    assert module.std == (0.5, 0.5, 0.5)
    assert module.image_size == 224
    assert module.depth == 12


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_models_without_tokens_are_refused(name: str) -> None:
    """Convolutional and hierarchical networks are an error that says why."""
    with pytest.raises(ConfigError, match=f"`timm/{name}` gives no sequence of tokens of square patches"):
        load(f"timm/{name}", random_weights=0)


def test_unknown_model_is_an_error() -> None:
    """A name that timm does not know is an error."""
    with pytest.raises(WeightsError, match="has no model `vit_nonsense`"):
        load("timm/vit_nonsense", random_weights=0)


def test_model_of_one_size_refuses_others() -> None:
    """A model that takes one size only says which."""
    module = TimmBackbone(timm.create_model("vit_tiny_patch16_224", num_classes=0), "timm/x")

    with pytest.raises(ConfigError, match="takes images of 224x224 pixels only, got 64x64") as caught:
        module(torch.zeros(1, 3, 64, 64))

    assert caught.value.hint == "add `--size 224`"


def test_random_weights_depend_on_the_seed_alone() -> None:
    """The same seed gives the same weights, and torch's own generator is untouched."""
    before = torch.random.get_rng_state()

    first, again = backbone("vit_tiny_patch16_224"), backbone("vit_tiny_patch16_224")

    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_file_of_a_classifier_is_loaded(tmp_path: Path) -> None:
    """A file with a classifier gives the same tokens as the model that was saved."""
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "x.safetensors")
    images = torch.randn(1, 3, 224, 224)

    loaded = load("timm/vit_tiny_patch16_224", weights=tmp_path / "x.safetensors")

    with torch.inference_mode():
        assert torch.equal(loaded.module(images).cls, theirs.forward_features(images)[:, 0])


def test_file_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    """A file is loaded whole or not at all: missing tensors are named instead of left random."""
    state = timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict()
    del state["blocks.3.attn.qkv.weight"]
    save_file(state, tmp_path / "x.safetensors")

    with pytest.raises(WeightsError, match=r"it lacks: `blocks.3.attn.qkv.weight`"):
        load("timm/vit_tiny_patch16_224", weights=tmp_path / "x.safetensors")


def test_missing_pretrained_weights_offline_are_an_error() -> None:
    """Without a copy in the Hugging Face cache and offline, the error names repository and file."""
    with pytest.raises(WeightsError, match=r"downloading is off: `model.safetensors` of https://huggingface.co/timm/vit_tiny_patch16_224"):
        load("timm/vit_tiny_patch16_224", offline=True)
