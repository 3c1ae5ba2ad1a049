"""The projection head equals the official one."""

from __future__ import annotations

import torch

from dino_extract.finetuning.config import HeadConfig
from dino_extract.finetuning.heads import DINOHead
from tests.finetuning import golden


def test_scores_equal_the_official_ones() -> None:
    """The head's scores equal the official ones to 1e-5 for the same weights."""
    _, tensors = golden.read(golden.GOLDEN / "losses.safetensors")
    head = DINOHead(24, HeadConfig(n_prototypes=96, bottleneck_dim=16, hidden_dim=40))
    head.load_state_dict({key: value for key, value in golden.under(tensors, "head.").items() if key not in ("input", "output")})

    got = head(tensors["head.input"])

    torch.testing.assert_close(got, tensors["head.output"], rtol=0, atol=1e-5)


def test_scores_are_float32_under_autocast() -> None:
    """In mixed precision the scores are float32 and within 0.02 of the exact ones, which lie between -1 and 1."""
    torch.manual_seed(0)
    head = DINOHead(24, HeadConfig(n_prototypes=96, bottleneck_dim=16, hidden_dim=40))
    tokens = torch.randn(5, 24)

    with torch.autocast("cpu", torch.bfloat16):
        got = head(tokens)

    assert got.dtype == torch.float32
    torch.testing.assert_close(got, head(tokens), rtol=0, atol=0.02)
