"""The backbone equals the official implementation and timm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dino_extract.backbone import BackboneConfig, Block, DinoVisionTransformer, attend

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = ["mlp", "mlp_reg4", "swiglu", "swiglu_reg4"]
CASES = ["70x70", "56x98"]  # native grid, and smaller, not square


def load_golden(variant: str) -> tuple[DinoVisionTransformer, dict[str, Tensor]]:
    """A small backbone with the weights of a golden file, and the outputs the official code gave in fp32 on a CPU."""
    with safe_open(GOLDEN / f"backbone_{variant}.safetensors", "pt") as file:
        spec = json.loads(file.metadata()["spec"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    model = DinoVisionTransformer(
        BackboneConfig(
            embed_dim=spec["embed_dim"],
            depth=spec["depth"],
            num_heads=spec["num_heads"],
            ffn="swiglu" if "swiglu" in spec["ffn_layer"] else "mlp",
            num_registers=spec["num_register_tokens"],
            image_size=spec["img_size"],
            interpolate_offset=spec["interpolate_offset"],
            interpolate_antialias=spec["interpolate_antialias"],
        )
    )
    model.load_state_dict({key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")})
    return model.eval(), tensors


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_final_tokens_equal_the_official_ones(variant: str, case: str) -> None:
    """CLS, register and patch tokens equal the official forward to 1e-5."""
    model, golden = load_golden(variant)

    with torch.inference_mode():
        tokens = model(golden[f"case_{case}.input"])

    for name, got in [("cls", tokens.cls), ("reg", tokens.registers), ("patch", tokens.patches)]:
        want = golden[f"case_{case}.x_norm_{name}token{'' if name == 'cls' else 's'}"]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_tokens_equal_the_official_ones(variant: str, case: str) -> None:
    """With a patch mask, as in training, the tokens equal the official forward to 1e-5."""
    model, golden = load_golden(variant)

    with torch.inference_mode():
        tokens = model(golden[f"case_{case}.input"], golden[f"case_{case}.mask"].bool())

    torch.testing.assert_close(tokens.cls, golden[f"case_{case}.masked.x_norm_clstoken"], rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.patches, golden[f"case_{case}.masked.x_norm_patchtokens"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_intermediate_layers_equal_the_official_ones(variant: str, case: str) -> None:
    """The last two layers, normed, equal the official `get_intermediate_layers` to 1e-5."""
    model, golden = load_golden(variant)

    with torch.inference_mode():
        layers = model.intermediate_layers(golden[f"case_{case}.input"], [model.depth - 2, model.depth - 1])

    for index, tokens in enumerate(layers):
        torch.testing.assert_close(tokens.cls, golden[f"case_{case}.intermediate.{index}.cls"], rtol=0, atol=1e-5)
        torch.testing.assert_close(tokens.patches, golden[f"case_{case}.intermediate.{index}.patch"], rtol=0, atol=1e-5)


def test_crops_of_two_sizes_in_one_pass_equal_separate_passes() -> None:
    """Packing crop sizes into shared linear layers changes no token."""
    model, golden = load_golden("mlp_reg4")
    large, small = golden["case_70x70.input"], golden["case_56x98.input"]
    mask = golden["case_70x70.mask"].bool()

    with torch.inference_mode():
        packed = model([large, small], [mask, None])
        separate = [model(large, mask), model(small)]

    for got, want in zip(packed, separate, strict=True):
        torch.testing.assert_close(got.cls, want.cls, rtol=0, atol=1e-6)
        torch.testing.assert_close(got.patches, want.patches, rtol=0, atol=1e-6)


def test_activation_checkpointing_leaves_the_gradients_unchanged() -> None:
    """Recomputing blocks in the backward pass gives the same gradients."""
    model, golden = load_golden("swiglu_reg4")
    model.train()
    gradients = []

    for recompute in (False, True):
        model.checkpoint_blocks = recompute
        model.zero_grad()
        model(golden["case_56x98.input"]).patches.square().sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())

    torch.testing.assert_close(gradients[0], gradients[1])


def test_stochastic_depth_computes_only_the_kept_images() -> None:
    """With drop_path 0.5 half of the images pass a branch untouched and the others get it doubled."""
    torch.manual_seed(0)
    block = Block(BackboneConfig(embed_dim=16, depth=1, num_heads=2, drop_path=0.5, layer_scale_init=1.0)).train()
    x_BSD = torch.randn(8, 5, 16)
    shapes = [(8, 5)]
    full = block._ffn_branch(x_BSD.flatten(0, 1), shapes).view_as(x_BSD)

    got = block._add_residual(x_BSD.flatten(0, 1), shapes, block._ffn_branch).view_as(x_BSD)

    untouched = (got == x_BSD).all(dim=(1, 2))
    assert untouched.sum() == 4
    torch.testing.assert_close(got[~untouched], (x_BSD + 2 * full)[~untouched])


def test_stochastic_depth_is_off_in_evaluation() -> None:
    """In eval mode drop_path changes nothing."""
    torch.manual_seed(0)
    config = BackboneConfig(embed_dim=16, depth=2, num_heads=2, image_size=28, drop_path=0.9)
    model = DinoVisionTransformer(config).eval()
    images = torch.randn(3, 3, 28, 28)

    first, second = model(images), model(images)

    assert torch.equal(first.cls, second.cls)


def test_sides_that_are_no_multiple_of_the_patch_are_refused() -> None:
    """An image of 30x28 pixels is refused with the sizes in the message."""
    model = DinoVisionTransformer(BackboneConfig(embed_dim=16, depth=1, num_heads=2, image_size=28))

    with pytest.raises(AssertionError, match="divisible by 14, got 30x28"):
        model(torch.zeros(1, 3, 30, 28))


def timm_twin(name: str, **kwargs: object) -> tuple[DinoVisionTransformer, torch.nn.Module]:
    """A ViT-S of ours and of timm with the same random weights."""
    timm = pytest.importorskip("timm")
    config = BackboneConfig(embed_dim=384, depth=12, num_heads=6)
    torch.manual_seed(0)
    ours = DinoVisionTransformer(config.with_registers() if "reg4" in name else config).eval()
    theirs = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **kwargs).eval()
    state = {key: value for key, value in ours.state_dict().items() if key != "mask_token"}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    theirs.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("size", [(224, 224), (280, 392), (518, 518)])
def test_register_model_equals_timm_at_every_size(size: tuple[int, int]) -> None:
    """ViT-S with registers gives timm's tokens at native, smaller and non-square sizes."""
    ours, theirs = timm_twin("vit_small_patch14_reg4_dinov2")
    images = torch.randn(1, 3, *size)

    with torch.inference_mode():
        tokens, want = ours(images), theirs.forward_features(images)

    torch.testing.assert_close(tokens.cls, want[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(tokens.patches, want[:, 5:], rtol=0, atol=1e-4)


def test_plain_model_equals_timm_at_the_native_size() -> None:
    """ViT-S without registers gives timm's tokens at 518 pixels, where timm does not interpolate."""
    ours, theirs = timm_twin("vit_small_patch14_dinov2")
    images = torch.randn(1, 3, 518, 518)

    with torch.inference_mode():
        tokens, want = ours(images), theirs.forward_features(images)

    torch.testing.assert_close(tokens.cls, want[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(tokens.patches, want[:, 1:], rtol=0, atol=1e-4)


def test_attention_in_bfloat16_equals_float32_with_its_gradients() -> None:
    """On a CPU in training, where it is written out as products, attention and its gradients stay within bfloat16's rounding."""
    torch.manual_seed(0)
    exact = [torch.randn(3, 2, 21, 16, requires_grad=True) for _ in range(3)]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]

    want = torch.nn.functional.scaled_dot_product_attention(*exact)
    got = attend(*rounded)
    want.sum().backward()
    got.float().sum().backward()

    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.float().flatten(), want.flatten(), dim=0) > 0.9999
    for mine, theirs in zip(rounded, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=0.02, rtol=0.05)
