"""The folded network is made of operations that torch's compiler can take apart and put together again."""

from __future__ import annotations

import pytest
import torch

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.engine import lean
from dino_extract.engine.lean import LeanTransformer, PlainLinear, attend_fused


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts
@pytest.mark.parametrize("prefix_only", [False, True])
def test_a_compiled_network_gives_the_same_tokens(prefix_only: bool) -> None:
    """Traced, made free of in-place steps and run as one graph, the network gives the tokens it gives by itself."""
    torch.manual_seed(0)
    backbone = DinoVisionTransformer(BackboneConfig(64, 2, 2, image_size=70, layer_scale_init=0.5).with_registers()).eval()
    with torch.inference_mode():
        network = LeanTransformer(
            backbone,
            device=torch.device("cpu"),
            dtype=torch.float32,
            make_linear=PlainLinear,
            attend=attend_fused,
            prefix_only=prefix_only,
        )
    pixels = torch.randint(0, 256, (2, 56, 70, 3), dtype=torch.uint8)

    with torch.inference_mode():
        plain = network(pixels, [0, 1])
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(pixels, [0, 1])

    for got, want in zip(compiled, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_positions_that_were_forgotten_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the grids that are kept each call makes its positions anew; forgetting the others lets them stay, with the same values."""
    monkeypatch.setattr(lean, "MAX_GRIDS", 1)
    backbone = DinoVisionTransformer(BackboneConfig(64, 1, 2, image_size=70)).eval()
    with torch.inference_mode():
        network = LeanTransformer(backbone, device=torch.device("cpu"), dtype=torch.float32, make_linear=PlainLinear, attend=attend_fused)
        network.positions((3, 4))
        before = network.positions((4, 4))
        assert network.positions((4, 4)) is not before

        network.forget_positions()

        assert network.positions((4, 4)) is network.positions((4, 4))
        torch.testing.assert_close(network.positions((4, 4)), before, rtol=0, atol=0)
