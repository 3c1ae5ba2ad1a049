"""Torch's fused attention in the kernel that is fastest for a shape, found by trying all of them once.

Dimension key as in lean.py.
"""

from __future__ import annotations

import functools
import statistics
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino_extract.engine.lean import Attend, attend_fused

# In order of preference: the first wins ties.
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
ROUNDS = 7
MAX_BATCH = 32  # images to try with: enough to fill a GPU, and never too many for its memory
CALLS = 10  # in one round, so that a clock can tell them apart
MIN_GAIN = 0.05  # a kernel must save so much to be preferred to one before it: noise must not decide, and the bits change with the kernel
TOLERANCE = 2e-2  # of bfloat16


def attend_by(backend: SDPBackend, *, only: bool = False) -> Attend:
    """Attention (B, K, D) by one of torch's kernels, by another where it does not take the shape; with `only` that is a RuntimeError.

    Of fewer queries than keys, which is not what was tried, by torch's choice: where only CLS is wanted, of the last block.
    """
    order = [backend] if only else [backend, *(other for other in (*KERNELS.values(), SDPBackend.MATH) if other != backend)]

    def attend(query_BAKd: Tensor, key_BASd: Tensor, value_BASd: Tensor) -> Tensor:
        if query_BAKd.shape[2] < key_BASd.shape[2]:
            return attend_fused(query_BAKd, key_BASd, value_BASd)
        with sdpa_kernel(order, set_priority=True):
            return attend_fused(query_BAKd, key_BASd, value_BASd)

    return attend


def fastest(candidates: Mapping[str, Attend], sample: tuple[Tensor, Tensor, Tensor], wait: Callable[[], None] = lambda: None) -> str | None:
    """The name of the attention that takes the least time, by the median of rounds in turn; None if none can be used.

    Args:
        candidates: by name. Left out are those that raise RuntimeError, and those that compute something else than torch's own choice.
        sample: query, key and value to try with.
        wait: returns when the device has done what it was given.
    """
    want = attend_fused(*sample).float()
    times: dict[str, list[float]] = {}
    for name, attend in candidates.items():
        try:
            got = attend(*sample).float()
        except RuntimeError:
            continue
        if torch.allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE):
            times[name] = []
    for _ in range(ROUNDS):
        for name, measured in times.items():
            wait()
            start = time.perf_counter()
            for _ in range(CALLS):
                candidates[name](*sample)
            wait()
            measured.append(time.perf_counter() - start)
    best: str | None = None
    for name, measured in times.items():
        if best is None or statistics.median(measured) < (1 - MIN_GAIN) * statistics.median(times[best]):
            best = name
    return best


@functools.cache
def fastest_attention(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> tuple[str, Attend]:
    """Name and form of the attention that is fastest on a device; torch's own choice (`default`) if no kernel of ours can be used.

    Args:
        device: where it will run.
        dtype: of queries, keys and values.
        shape: (B, S, A, d) as the engine will have it.
    """
    draw = torch.Generator().manual_seed(0)
    batch, length, heads, width = min(shape[0], MAX_BATCH), *shape[1:]
    one = torch.randn(1, length, 3, heads, width, generator=draw)
    one[:, :, 0] *= width**-0.5
    sample = one.to(device, dtype).expand(batch, -1, -1, -1, -1).contiguous().permute(2, 0, 3, 1, 4)  # laid out as a block lays them out
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    candidates = {name: attend_by(backend, only=True) for name, backend in KERNELS.items()}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch explains why a kernel does not take a shape
        name = fastest(candidates, (sample[0], sample[1], sample[2]), wait)
    return ("default", attend_fused) if name is None else (name, attend_by(KERNELS[name]))
