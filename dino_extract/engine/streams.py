"""One model stream for each core of a CPU: single-threaded forwards side by side waste nothing on waiting for each other."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F

from dino_extract.engine.network import Network
from dino_extract.engine.resize import to_device
from dino_extract.images.preprocess import DeviceImages


class Streams:
    """Runs a network in several threads, over parts of a batch of always the same size.

    The threads share the weights. Where the network's rows are independent, a row of the result depends neither on the thread nor
    on the other images.

    Args:
        network: runs one part.
        device: where the network runs.
        batch_size: images in one batch, split into equal parts, one for each stream; a last part is padded.
        num_threads: cores to use; where a batch has fewer images than that, several cores share a part.
    """

    def __init__(self, network: Network, *, device: torch.device, batch_size: int, num_threads: int) -> None:
        self._network = network
        self._device = device
        num_streams = max(1, min(num_threads, batch_size))
        self._part_size = -(-batch_size // num_streams)
        self._pool = start_pool(num_streams, max(1, num_threads // num_streams))

    def submit(self, pixels: np.ndarray | DeviceImages) -> Callable[[], dict[str, np.ndarray]]:
        """As in `Runner`; the pixels must stay as they are until the returned function has given the result."""
        starts = range(0, len(pixels), self._part_size)
        return functools.partial(
            joined_results, [self._pool.submit(self._run, pixels[start : start + self._part_size]) for start in starts]
        )

    def _run(self, pixels: np.ndarray | DeviceImages) -> dict[str, np.ndarray]:
        count = len(pixels)
        part = to_device(pixels, self._device)
        if count < self._part_size:
            part = F.pad(part, (0, 0, 0, 0, 0, 0, 0, self._part_size - count))
        return {name: rows[:count].cpu().numpy() for name, rows in self._network(part).items()}


def joined_results(parts: list[Future[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The results of all parts of a batch, in order."""
    results = [part.result() for part in parts]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def start_pool(num_streams: int, threads_per_stream: int) -> ThreadPoolExecutor:
    """A pool whose threads each let torch use `threads_per_stream` cores; the setting of other threads stays as it is."""
    before = torch.get_num_threads()
    all_started = threading.Barrier(num_streams + 1)

    def start() -> None:
        torch.get_num_threads()  # lets torch take its start value for this thread now, or that would replace ours later
        torch.set_num_threads(threads_per_stream)
        all_started.wait()

    pool = ThreadPoolExecutor(num_streams, thread_name_prefix="model", initializer=start)
    for _ in range(num_streams):
        pool.submit(int)  # starts one more thread, as the ones before it wait
    all_started.wait()
    torch.set_num_threads(before)  # the last call anywhere is the start value of threads to come
    return pool
