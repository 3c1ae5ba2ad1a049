"""The forms of linear layers and attention that are fast on a CPU.

Dimension key as in lean.py.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dino_extract.engine.lean import Attend, MakeLinear, PlainLinear, attend_fused

MAX_QUERY_ROWS = 512  # queries whose scores are in the cache at once
MAX_SCORES = 1_500_000  # 3 MB of bfloat16: a core's share of the cache


class PackedLinear:
    """The layer in oneDNN with its weight laid out once, and the elementwise step fused into it.

    Args:
        weight: (out, in), in the dtype of the computation.
        bias: (out,) likewise.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def __call__(self, x_TD: Tensor) -> Tensor:
        """As in `Linear`."""
        return torch.ops.mkldnn._linear_pointwise(x_TD, self._weight, self._bias, "none", [], "")

    def gelu(self, x_TD: Tensor) -> Tensor:
        """As in `Linear`."""
        return torch.ops.mkldnn._linear_pointwise(x_TD, self._weight, self._bias, "gelu", [], "none")

    def silu(self, x_TD: Tensor) -> Tensor:
        """As in `Linear`."""
        return torch.ops.mkldnn._linear_pointwise(x_TD, self._weight, self._bias, "swish", [], "")

    def multiply(self, x_TD: Tensor, factor_TD: Tensor) -> Tensor:
        """As in `Linear`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x_TD, factor_TD, self._weight, self._bias, "mul")


def fastest_linear(dtype: torch.dtype) -> MakeLinear:
    """Makes linear layers in `dtype`: packed where this build of torch has them and they compute what plain ones do."""
    form = PackedLinear if packed_linear_works(dtype) else PlainLinear

    def make(weight: Tensor, bias: Tensor) -> PackedLinear | PlainLinear:
        return form(weight.to(dtype), bias.to(dtype))

    return make


@functools.cache
def packed_linear_works(dtype: torch.dtype) -> bool:
    """Whether packed layers give what plain ones give. They rest on operators that torch keeps for its own compiler."""
    draw = torch.Generator().manual_seed(0)
    x, factor = torch.randn(33, 48, generator=draw).to(dtype), torch.randn(33, 64, generator=draw).to(dtype)
    weight, bias = torch.randn(64, 48, generator=draw).to(dtype) / 7, torch.randn(64, generator=draw).to(dtype)
    try:
        packed = PackedLinear(weight, bias)
        got = [packed(x), packed.gelu(x), packed.silu(x), packed.multiply(x, factor)]
    except (RuntimeError, AttributeError, TypeError):  # missing, or with another signature, in this build
        return False
    plain = PlainLinear(weight.float(), bias.float())
    x, factor = x.float(), factor.float()
    want = [plain(x), plain.gelu(x), plain.silu(x), plain.multiply(x, factor)]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    return all(torch.allclose(a.float(), b, rtol=tolerance, atol=tolerance) for a, b in zip(got, want, strict=True))


def attend_in_tiles(query_BAKd: Tensor, key_BASd: Tensor, value_BASd: Tensor) -> Tensor:
    """Attention (B, K, D) as two matrix products and a softmax, over as many heads and queries as the cache holds.

    In bfloat16 it takes half to two thirds of the time of torch's fused kernel, whose products are slow there.
    """
    batch, heads, num_queries, width = query_BAKd.shape
    length = key_BASd.shape[2]
    num_tiles = -(-num_queries // MAX_QUERY_ROWS)
    rows = -(-num_queries // num_tiles)
    group = max(1, min(heads, MAX_SCORES // (rows * length)))
    out_BKAd = query_BAKd.new_empty(batch, num_queries, heads, width)
    for image in range(batch):
        for start in range(0, heads, group):
            head = slice(start, start + group)
            key_AdS, value_ASd = key_BASd[image, head].transpose(1, 2), value_BASd[image, head]
            for row in range(0, num_queries, rows):
                scores = torch.bmm(query_BAKd[image, head, row : row + rows], key_AdS)
                attended = torch.bmm(torch.softmax(scores, dim=-1), value_ASd)
                out_BKAd[image, row : row + rows, head] = attended.transpose(0, 1)
    return out_BKAd.flatten(2)


def fastest_attention(dtype: torch.dtype) -> tuple[str, Attend]:
    """Name and form of the attention that is fastest in `dtype`."""
    return ("tiles", attend_in_tiles) if dtype == torch.bfloat16 else ("fused", attend_fused)
