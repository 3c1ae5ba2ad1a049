"""The backbone made ready for inference: uint8 pixels in, arrays in storage dtype out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dino_extract.backbone import Backbone, DinoVisionTransformer
from dino_extract.config import StoreDtype
from dino_extract.engine import cpu, sdpa
from dino_extract.engine.cuda import CudaPipeline
from dino_extract.engine.lean import Attend, LeanTransformer, PlainLinear, attend_fused
from dino_extract.engine.network import AnyTokens, LayerTokens, LeanTokens, TokenNetwork
from dino_extract.engine.plan import ComputeDtype, forbid_tf32, num_tokens
from dino_extract.engine.streams import Streams
from dino_extract.images.preprocess import DeviceImages
from dino_extract.tokens import TokenSpec

Arrays = dict[str, np.ndarray]

# Parts of out-of-memory messages that torch does not raise as OutOfMemoryError: of the CUDA driver, cuBLAS, cuDNN and the CPU allocator.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "can't allocate memory")


class Runner(Protocol):
    """Carries out batches on a device, several at a time."""

    def submit(self, pixels: np.ndarray | DeviceImages) -> Callable[[], Arrays]:
        """Start on pixels (B, H, W, 3) uint8, or on pictures to be resized; the returned function waits for the arrays."""


class Engine:
    """Runs a backbone over fixed-size batches of pixels.

    Args:
        backbone: the model, in eval mode with float32 weights. The engine holds its own copy of the weights in `dtype`.
        spec: the tokens to keep.
        device: where to run.
        dtype: of the matrix products; the final norm and the mean of patches stay in float32.
        store_dtype: of the returned arrays.
        batch_size: every batch is padded to this many images, so that the same kernels run whatever the batch holds.
        release: free the weights of `backbone` as they are taken over, so that memory never holds two copies; it cannot be used
            afterwards.
        compiled: let torch.compile fuse what is left between the matrix products; see `choose_compiled`.
        size: height and width in pixels of most images: on a GPU the attention that is fastest for them is tried out.

    Attributes:
        attention: which form of it runs, for people.
        compiled: whether torch.compile made the network.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TokenSpec,
        *,
        device: torch.device,
        dtype: ComputeDtype,
        store_dtype: StoreDtype = "float16",
        batch_size: int,
        release: bool = False,
        compiled: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        if dtype == "float32":
            forbid_tf32()
        self.spec = spec
        self.device = device
        self.batch_size = batch_size
        self.compiled = compiled
        self.attention, attend = choose_attention(
            backbone, device=device, dtype=getattr(torch, dtype), batch_size=batch_size, size=size, compiled=compiled
        )
        layer_tokens = fast_tokens(
            backbone, spec, device=device, dtype=getattr(torch, dtype), attend=attend, release=release, compiled=compiled
        )
        self._lean = layer_tokens if isinstance(layer_tokens, LeanTokens) else None
        if compiled:
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # advice of torch 2.11 against what float32 is chosen for
        self._network = TokenNetwork(
            torch.compile(layer_tokens) if compiled else layer_tokens,
            spec,
            depth=backbone.depth,
            patch_size=backbone.patch_size,
            store_dtype=getattr(torch, store_dtype),
            prepare=None if self._lean is None else self._lean.prepare,
        )
        self._num_threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._runner = self._make_runner()

    def __call__(self, pixels: np.ndarray | DeviceImages) -> Arrays:
        """Token arrays by dataset name, each (B, ...) in storage dtype.

        Args:
            pixels: (B, H, W, 3) uint8, RGB, 0..255, or decoded pictures, resized on the device; any B.
        """
        return self.submit(pixels).result()

    def submit(self, pixels: np.ndarray | DeviceImages) -> Ticket:
        """Start on a batch without waiting for it; keep a few under way and the device never waits for the host.

        Args:
            pixels: as in a call; they must stay as they are until the result has been taken.
        """
        return Ticket(self, pixels)

    def fit(self, batch_size: int) -> None:
        """Make batches this large from now on; nothing may be under way. Costs little on a CPU, and a new graph on a GPU."""
        if batch_size != self.batch_size:
            self._rebuild(batch_size)

    def start(self, pixels: np.ndarray | DeviceImages) -> list[Callable[[], Arrays]]:
        """Start on pixels in batches; each function waits for the arrays of one. `Ticket` calls this."""
        starts = range(0, len(pixels), self.batch_size)
        return [self._runner.submit(pixels[start : start + self.batch_size]) for start in starts]

    def shrink(self, failed_size: int, error: RuntimeError) -> None:
        """Halve the batch, unless another batch under way has done so already; `error` must not hold what is to be freed."""
        if self.batch_size != failed_size:
            return
        if failed_size == 1:
            raise error
        self._rebuild(self.batch_size // 2)

    def _rebuild(self, batch_size: int) -> None:
        self.batch_size = batch_size
        del self._runner  # before the next one, so that its memory is free
        if self._lean is not None:
            self._lean.forget_positions()  # the next runner's graphs need some that may not be among those kept
        torch.cuda.empty_cache()
        self._runner = self._make_runner()

    def _make_runner(self) -> Runner:
        if self.device.type == "cuda":
            is_captured = self._lean is not None  # others may make tensors on the host in every forward
            return CudaPipeline(self._network, device=self.device, batch_size=self.batch_size, is_captured=is_captured)
        return Streams(self._network, device=self.device, batch_size=self.batch_size, num_threads=self._num_threads)


class Ticket:
    """A batch under way in an engine, in parts where it is larger than the engine's batches.

    Args:
        engine: runs it.
        pixels: as in a call of the engine.
    """

    def __init__(self, engine: Engine, pixels: np.ndarray | DeviceImages) -> None:
        assert len(pixels), "expected at least one image, got none"
        self._engine = engine
        self._pixels = pixels
        self._begin()

    def result(self) -> Arrays:
        """Token arrays by dataset name, as from a call of the engine; waits until they are there."""
        while True:
            try:
                parts = [part() for part in self._parts]
                break
            except RuntimeError as error:
                failure = memory_failure(error)
            self._engine.shrink(self._size, failure)
            self._begin()
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _begin(self) -> None:
        while True:
            self._size = self._engine.batch_size
            try:
                self._parts = self._engine.start(self._pixels)
                return
            except RuntimeError as error:
                failure = memory_failure(error)
            self._engine.shrink(self._size, failure)


def memory_failure(error: RuntimeError) -> RuntimeError:
    """The error without its frames, which hold memory, if it says that memory has run out, or came while one that says so was handled.

    The second is how a CUDA graph's capture ends.

    Raises:
        RuntimeError: the error itself, if it is another one.
    """
    chain: list[BaseException] = [error]
    while (before := chain[-1].__context__) is not None:
        chain.append(before)
    if not any(isinstance(one, torch.cuda.OutOfMemoryError) or any(words in str(one) for words in OUT_OF_MEMORY) for one in chain):
        raise error
    for one in chain:
        one.__traceback__ = None
    return error


def choose_attention(
    backbone: Backbone, *, device: torch.device, dtype: torch.dtype, batch_size: int, size: tuple[int, int] | None, compiled: bool
) -> tuple[str, Attend]:
    """Name and form of the attention that is fastest on the device for our own network; any other brings its own.

    Arguments as for `Engine`.
    """
    if not isinstance(backbone, DinoVisionTransformer):
        return "its own", attend_fused
    if device.type == "cpu" and not compiled:  # the compiler would unroll loops over tiles
        return cpu.fastest_attention(dtype)
    if device.type != "cuda" or size is None:
        return "default", attend_fused
    heads = backbone.config.num_heads
    return sdpa.fastest_attention(device, dtype, (batch_size, num_tokens(backbone, size), heads, backbone.embed_dim // heads))


def fast_tokens(
    backbone: Backbone, spec: TokenSpec, *, device: torch.device, dtype: torch.dtype, attend: Attend, release: bool, compiled: bool
) -> LayerTokens:
    """The model in the form that is fastest on the device: folded for our own network, as it is for any other."""
    if not isinstance(backbone, DinoVisionTransformer):
        # Moving a module moves it for everybody who holds it, such as an engine on another device.
        return AnyTokens(backbone if release else copy.deepcopy(backbone), device=device, dtype=dtype)

    def plain_linear(weight: Tensor, bias: Tensor) -> PlainLinear:
        return PlainLinear(weight.to(device, dtype), bias.to(device, dtype))

    is_packed = device.type == "cpu" and not compiled  # the compiler cannot look into packed weights, and packs them itself
    with torch.inference_mode():
        transformer = LeanTransformer(
            backbone,
            device=device,
            dtype=dtype,
            make_linear=cpu.fastest_linear(dtype) if is_packed else plain_linear,
            attend=attend,
            prefix_only=not spec.needs_patches,
            release=release,
        )
    return LeanTokens(transformer, backbone.num_registers)
