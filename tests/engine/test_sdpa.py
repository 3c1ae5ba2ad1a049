"""The fastest attention kernel is found by trying, and one that refuses or errs is never taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from dino_extract.engine import sdpa
from dino_extract.engine.lean import Attend, attend_fused
from dino_extract.engine.sdpa import KERNELS, attend_by, fastest, fastest_attention
from tests.engine.test_cpu import naive_attention

CPU = torch.device("cpu")


def make_sample() -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of 2 images, 3 heads, 11 tokens and width 8."""
    query, key, value = torch.randn(3, 2, 3, 11, 8, generator=torch.Generator().manual_seed(0))
    return query, key, value


class Clock:
    """A clock that stands still but for what `taking` adds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(sdpa.time, "perf_counter", lambda: self.now)

    def taking(self, seconds: float, error: float = 0.0) -> Attend:
        """Attention that takes so long and is wrong by so much."""

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.now += seconds
            return attend_fused(query, key, value) + error

        return attend


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION])
def test_every_kernel_gives_attention(backend: SDPBackend) -> None:
    """Kernels that this CPU has, and another in place of one that it has not, give the equation of attention."""
    query, key, value = make_sample()

    got = attend_by(backend)(query, key, value)

    torch.testing.assert_close(got.double(), naive_attention(query.double(), key.double(), value.double()), rtol=1e-5, atol=1e-6)


def test_a_kernel_alone_refuses_what_it_cannot_do() -> None:
    """Asked for by itself, cuDNN on a CPU is a RuntimeError, by which the search knows."""
    with pytest.raises(RuntimeError, match="backend"):
        attend_by(SDPBackend.CUDNN_ATTENTION, only=True)(*make_sample())


def test_fewer_queries_than_keys_are_left_to_torch() -> None:
    """What the last block asks for where only CLS is wanted was not tried, and never meets a kernel that may refuse it."""
    query, key, value = make_sample()
    query = query[:, :, :1]

    got = attend_by(SDPBackend.CUDNN_ATTENTION, only=True)(query, key, value)

    torch.testing.assert_close(got.double(), naive_attention(query.double(), key.double(), value.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("seconds", "name"), [((1.0, 1.0, 1.0), "a"), ((1.0, 0.97, 0.96), "a"), ((1.0, 0.9, 0.7), "c"), ((1.0, 0.8, 0.79), "b")]
)
def test_a_kernel_is_preferred_when_it_saves_more_than_noise(
    seconds: tuple[float, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one with the least time is taken, but among times alike the first."""
    clock = Clock(monkeypatch)

    assert fastest({key: clock.taking(each) for key, each in zip("abc", seconds, strict=True)}, make_sample()) == name


def test_one_slow_round_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median counts: a kernel that was held up once is still the fastest."""
    clock = Clock(monkeypatch)
    quick, calls = clock.taking(1.0), iter(range(10_000))

    def held_up(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        clock.now += 1000.0 if next(calls) == 3 * sdpa.CALLS else 0.0
        return quick(query, key, value)

    assert fastest({"slow": clock.taking(1.5), "held up": held_up}, make_sample()) == "held up"


def test_kernels_that_err_or_refuse_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest is not taken if it computes something else, or refuses; with no other there is none."""
    clock = Clock(monkeypatch)
    bad = {
        "wrong": clock.taking(0.1, error=0.5),
        "not a number": clock.taking(0.1, error=torch.nan),
        "refusing": attend_by(SDPBackend.CUDNN_ATTENTION, only=True),
    }

    assert fastest({**bad, "good": clock.taking(1.0)}, make_sample()) == "good"
    assert fastest(bad, make_sample()) is None


def test_waiting_for_the_device_belongs_to_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that a device still has to do when a call returns counts for that call."""
    clock = Clock(monkeypatch)
    queued = 0.0

    def lazy(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        nonlocal queued
        queued += 2.0
        return attend_fused(query, key, value)

    def wait() -> None:
        nonlocal queued
        clock.now += queued
        queued = 0.0

    assert fastest({"lazy": lazy, "honest": clock.taking(1.0)}, make_sample(), wait) == "honest"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_search_on_this_device_finds_what_runs(dtype: torch.dtype) -> None:
    """With the kernels of this CPU the search gives one of them that computes attention, or torch's own choice."""
    query, key, value = make_sample()

    name, attend = fastest_attention(CPU, dtype, (2, 11, 3, 8))

    assert name in {*KERNELS, "default"}
    got = attend(query.to(dtype), key.to(dtype), value.to(dtype)).double()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got, naive_attention(query.double(), key.double(), value.double()), rtol=tolerance, atol=tolerance)


def test_a_chosen_kernel_can_be_compiled() -> None:
    """The choice of a kernel is no obstacle to torch's compiler: one graph, the same result."""
    attend, sample = attend_by(SDPBackend.FLASH_ATTENTION), make_sample()

    got = torch.compile(attend, backend="aot_eager", fullgraph=True)(*sample)

    torch.testing.assert_close(got, attend_fused(*sample))
