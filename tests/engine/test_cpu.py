"""The fast forms of linear layers and attention on a CPU compute what their equations say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dino_extract.engine import cpu
from dino_extract.engine.cpu import PackedLinear, attend_in_tiles, fastest_linear, packed_linear_works
from dino_extract.engine.lean import PlainLinear, attend_fused


def naive_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of float64 heads, one query at a time."""
    out = torch.empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3], dtype=torch.float64)
    for image, head, row in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])).tolist():
        scores = (key[image, head] @ query[image, head, row]).exp()
        out[image, row, head] = scores / scores.sum() @ value[image, head]
    return out.flatten(2)


@pytest.mark.parametrize(("queries", "limits"), [(11, None), (11, (4, 60)), (1, None), (11, (100, 1))])
@pytest.mark.parametrize("form", [attend_in_tiles, attend_fused])
def test_attention_equals_its_equation(form: object, queries: int, limits: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all queries or only the first, in one tile or many, attention is the softmax-weighted mean of the values."""
    if limits:
        monkeypatch.setattr(cpu, "MAX_QUERY_ROWS", limits[0])
        monkeypatch.setattr(cpu, "MAX_SCORES", limits[1])
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 11, 8, dtype=torch.float64, generator=draw)

    got = form(query[:, :, :queries].float(), key.float(), value.float())  # type: ignore[operator]

    torch.testing.assert_close(got.double(), naive_attention(query[:, :, :queries], key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", [PlainLinear, PackedLinear])
def test_linear_layers_equal_their_equations(form: type[PlainLinear] | type[PackedLinear]) -> None:
    """Every step that a layer carries out with its product gives what its equation gives in float64."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw) for shape in [(5, 6), (7, 6), (7,)])
    other = torch.randn(5, 7, generator=draw)
    product = x.double() @ weight.double().T + bias.double()

    layer = form(weight, bias)

    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(layer(x).double(), product, **close)
    torch.testing.assert_close(layer.gelu(x).double(), product * (1 + torch.erf(product / 2**0.5)) / 2, **close)
    torch.testing.assert_close(layer.silu(x).double(), product / (1 + (-product).exp()), **close)
    torch.testing.assert_close(layer.multiply(x, other).double(), product * other.double(), **close)


@pytest.mark.parametrize("defect", [RuntimeError("not in this build"), "wrong result"])
def test_plain_layers_stand_in_for_packed_ones_that_fail(defect: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's packed operators are missing or compute something else, plain layers take their place."""

    def broken(self: PackedLinear, x: Tensor) -> Tensor:
        if isinstance(defect, Exception):
            raise defect
        return torch.zeros(len(x), len(self._bias))

    monkeypatch.setattr(PackedLinear, "gelu", broken)
    packed_linear_works.cache_clear()

    layer = fastest_linear(torch.float32)(torch.ones(2, 3), torch.zeros(2))

    packed_linear_works.cache_clear()
    assert isinstance(layer, PlainLinear)


def test_packed_layers_are_used_where_they_work() -> None:
    """On a build of torch with oneDNN the packed layers pass their probe."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")

    layer = fastest_linear(torch.float32)(torch.ones(2, 3), torch.zeros(2))

    assert isinstance(layer, PackedLinear)
