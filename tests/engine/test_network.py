"""The network as a GPU would run it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.engine.lean import attend_fused
from dino_extract.engine.network import LeanTokens, TokenNetwork
from dino_extract.engine.run import fast_tokens
from dino_extract.tokens import TokenSpec
from tests.fake_gpu import CUDA, Traffic

SHAPES = [
    BackboneConfig(embed_dim=64, depth=3, num_heads=2, image_size=70),
    BackboneConfig(embed_dim=48, depth=3, num_heads=3, image_size=70, ffn="swiglu").with_registers(),
]


@pytest.mark.parametrize("config", SHAPES, ids=["mlp", "swiglu_reg4"])
@pytest.mark.parametrize("spec", [TokenSpec(("cls",)), TokenSpec(("cls", "patch", "mean"), (0, 2))], ids=["cls", "patches"])
def test_after_its_first_run_a_cuda_graph_can_hold_it(config: BackboneConfig, spec: TokenSpec) -> None:
    """Once the positions of a grid are there, a forward pass takes nothing from the host and asks the GPU for no value."""
    backbone = DinoVisionTransformer(config).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        tokens = fast_tokens(backbone, spec, device=CUDA, dtype=torch.bfloat16, attend=attend_fused, release=False, compiled=False)
        assert isinstance(tokens, LeanTokens)
        network = TokenNetwork(tokens, spec, depth=3, patch_size=14, store_dtype=torch.float16, prepare=tokens.prepare)
        pixels = torch.empty(4, 56, 70, 3, dtype=torch.uint8, device=CUDA)
        with Traffic() as first:
            network(pixels)

        with Traffic() as later:
            arrays = network(pixels)

    assert first.seen, "positions are made on the host"
    assert later.seen == []
    assert {array.device.type for array in arrays.values()} == {"cuda"}
