"""Batches on a GPU: one CUDA graph for the whole network, copies in and out beside it.

The order of work on the three streams is kept by events alone, so the host only waits when it takes a result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_extract.engine.network import Network
from dino_extract.engine.resize import to_device
from dino_extract.images.pixels import Allocate, allocate_pixels
from dino_extract.images.preprocess import DeviceImages

MAX_GRAPHS = 8  # image sizes with a graph of their own, each holds its pixels and results; further sizes run without
WARM_UP_RUNS = 3  # before a capture, so that libraries have made their plans


class CudaPipeline:
    """Runs a network on a GPU over batches of fixed size, several of which may be under way.

    Args:
        network: runs one batch on the device.
        device: a CUDA device.
        batch_size: images in one batch; smaller ones are padded.
        is_captured: whether the network becomes a CUDA graph, in which nothing may come from the host's memory.
    """

    def __init__(self, network: Network, *, device: torch.device, batch_size: int, is_captured: bool = True) -> None:
        self._network = network
        self._is_captured = is_captured
        self._device = device
        self._batch_size = batch_size
        self._programs: dict[tuple[int, ...], Network] = {}
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._copy_in, self._compute, self._copy_out = (torch.cuda.Stream() for _ in range(3))
            self._compute.wait_stream(torch.cuda.current_stream())  # on which the network was made

    def submit(self, pixels: np.ndarray | DeviceImages) -> Callable[[], dict[str, np.ndarray]]:
        """As in `Runner`, for at most as many images as a batch; the pixels must stay as they are until the result has been taken."""
        count = len(pixels)
        with torch.cuda.stream(self._copy_in):
            on_device = to_device(pixels, self._device)
            if count < self._batch_size:
                on_device = F.pad(on_device, (0, 0, 0, 0, 0, 0, 0, self._batch_size - count))
        program = self._program(tuple(on_device.shape))
        self._compute.wait_stream(self._copy_in)
        with torch.cuda.stream(self._compute):
            on_device.record_stream(self._compute)
            outputs = program(on_device)
        self._copy_out.wait_stream(self._compute)
        host = {}
        with torch.cuda.stream(self._copy_out):
            for name, rows in outputs.items():
                rows.record_stream(self._copy_out)
                host[name] = torch.empty(count, *rows.shape[1:], dtype=rows.dtype, pin_memory=True)
                host[name].copy_(rows[:count], non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # a waiting host must leave its core to the decoders
            done.record(self._copy_out)

        def result() -> dict[str, np.ndarray]:
            done.synchronize()
            return {name: rows.numpy() for name, rows in host.items()}

        return result

    def _program(self, shape: tuple[int, ...]) -> Network:
        if shape not in self._programs:
            if not self._is_captured or len(self._programs) >= MAX_GRAPHS:
                return self._network
            with torch.cuda.device(self._device):
                self._programs[shape] = CapturedNetwork(self._network, shape, self._compute, self._pool)
        return self._programs[shape]


def allocator_for(device: torch.device) -> Allocate:
    """Memory for pixels that are on their way to this device: pinned for a GPU, which then reads it beside everything else."""
    if device.type != "cuda":
        return allocate_pixels
    # Blocks come from torch's cache, which keeps each until the copies that use it are done.
    return lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


class CapturedNetwork:
    """A network for one shape of pixels as a CUDA graph: one launch for a batch.

    Args:
        network: what to capture.
        shape: of the pixels, (B, H, W, 3).
        stream: on which it is captured and will run.
        pool: handle of the memory that it shares with other graphs of this stream. Their runs follow each other, and what they give is
            copied at once: none disturbs another.
    """

    def __init__(self, network: Network, shape: tuple[int, ...], stream: torch.cuda.Stream, pool: Any) -> None:
        with torch.inference_mode(), torch.cuda.stream(stream):
            self._pixels = torch.zeros(shape, dtype=torch.uint8, device=stream.device)
            for _ in range(WARM_UP_RUNS):
                network(self._pixels)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may allocate pinned memory meanwhile, which the default mode forbids.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = network(self._pixels)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """As in `Network`; the result is a copy, as the graph's own outputs are overwritten by its next run."""
        self._pixels.copy_(pixels)
        self._graph.replay()
        return {name: rows.clone() for name, rows in self._outputs.items()}
