"""Where and in which precision a job runs, and how many images go into one batch."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Literal

import torch

from dino_extract.backbone import Backbone, DinoVisionTransformer
from dino_extract.config import Compile
from dino_extract.errors import ConfigError

ComputeDtype = Literal["float32", "bfloat16"]

# Tokens x width of one stream's batch that stay in a core's share of the cache: 16 images of ViT-S at 224 pixels.
STREAM_ELEMENTS = 16 * 257 * 384
# Likewise for a GPU, large enough to fill its matrix units: 256 images of ViT-S at 224 pixels.
CUDA_BATCH_ELEMENTS = 256 * 257 * 384
MAX_STREAM_BATCH = 16
MAX_CUDA_BATCH = 256
# Estimated, not measured: compiling takes about a minute, and then saves 10 to 25 % of the time, of which this work takes 3 to 5 minutes
# on an H200. It is 8 million images of ViT-S at 224 pixels, or 170,000 of ViT-g.
COMPILE_FLOPS = 1e17


def choose_device(device: str) -> torch.device:
    """The torch device of a name: `auto` is the first CUDA GPU, or the CPU.

    Raises:
        ConfigError: another kind of device, or one that does not exist here.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise ConfigError(
            f"`device` must be auto, cpu, cuda or cuda:N, got `{device}`", hint="`dino-extract doctor` lists what this machine has"
        )
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device `{device}` cannot be used: {reason}", hint="`dino-extract doctor` lists what this machine has"
        ) from error
    return chosen


def choose_devices(devices: str) -> tuple[torch.device, ...]:
    """The torch devices of some names: one as for `choose_device`, several with commas, or `all` CUDA GPUs.

    Raises:
        ConfigError: as from `choose_device`; GPUs and the CPU together; or `all` of none.
    """
    names = [name.strip() for name in devices.split(",")]
    if names == ["all"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        if not names:
            raise ConfigError("`device=all` takes all GPUs, and there are none", hint="`dino-extract doctor` lists what this machine has")
    chosen = tuple(choose_device(name) for name in names)
    if len({device.type for device in chosen}) > 1:
        raise ConfigError(f"`device` must name GPUs or the CPU, not both, got `{devices}`")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> ComputeDtype:
    """The precision that the option `dtype` means: `auto` is bfloat16 where the hardware multiplies it fast, else float32.

    Raises:
        ConfigError: the dtype is not auto, float32 or bfloat16.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"`dtype` must be auto, float32 or bfloat16, got `{dtype}`")
    return "bfloat16" if dtype == "bfloat16" or (dtype == "auto" and multiplies_bfloat16(device)) else "float32"


def forbid_tf32() -> None:
    """Have torch compute float32 convolutions on a GPU in float32, for the whole process; its default is TF32, which is less precise."""
    torch.backends.cudnn.allow_tf32 = False


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 fast."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_multiplies_bfloat16()


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has matrix instructions for bfloat16: AVX512_BF16 or AMX. Without them it emulates, slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_batch_size(backbone: Backbone, size: tuple[int, int], device: torch.device, num_images: int) -> int:
    """A batch size that keeps this device busy without filling its memory: on a CPU, an equal part for each of its streams.

    Args:
        backbone: the model.
        size: image height and width in pixels.
        device: where the model runs.
        num_images: images of the whole job; a small job gets no larger batch than it has images.
    """
    elements = num_tokens(backbone, size) * backbone.embed_dim
    if device.type == "cuda":
        return max(1, min(power_of_two(CUDA_BATCH_ELEMENTS // elements), MAX_CUDA_BATCH, num_images))
    streams = torch.get_num_threads()
    return max(1, min(streams * min(power_of_two(STREAM_ELEMENTS // elements), MAX_STREAM_BATCH), num_images))


def num_tokens(backbone: Backbone, size: tuple[int, int]) -> int:
    """Tokens of an image of this height and width in pixels: CLS, registers and patches."""
    return 1 + backbone.num_registers + (size[0] // backbone.patch_size) * (size[1] // backbone.patch_size)


def forward_flops(backbone: Backbone, size: tuple[int, int], *, whole: bool) -> float | None:
    """Floating-point operations of the engine for one image, two for each multiplication with its addition; None if not our network.

    Args:
        backbone: the model.
        size: image height and width in pixels.
        whole: whether patch tokens are kept; if not, the last block computes only CLS and register tokens.
    """
    if not isinstance(backbone, DinoVisionTransformer):
        return None
    dim, depth = backbone.embed_dim, backbone.depth
    tokens, prefix = num_tokens(backbone, size), 1 + backbone.num_registers
    kept = tokens if whole else prefix
    embed = 2 * (tokens - prefix) * dim * 3 * backbone.patch_size**2
    full_block = 24 * tokens * dim**2 + 4 * tokens**2 * dim  # 3 + 1 + 8 widths of weights; the gated network has as many
    last_block = 4 * tokens * dim**2 + 20 * kept * dim**2 + 4 * kept * tokens * dim
    return float(embed + (depth - 1) * full_block + last_block)


def choose_compiled(wish: Compile, device: torch.device, flops: float | None) -> bool:
    """Whether the network is compiled: `auto` does where that is worth it, and something here can compile.

    Args:
        wish: of the user.
        device: where the model runs.
        flops: floating-point operations of the whole job; None where they are not known.

    Raises:
        ConfigError: `on`, and nothing here can compile.
    """
    if wish == "off" or (wish == "auto" and not is_worth_compiling(device, flops)):
        return False
    problem = compiler_problem(device)
    if problem is None:
        return True
    if wish == "auto":
        return False
    needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler"
    raise ConfigError(f"`compile=on` needs {needs}, and torch says: {problem}", hint="leave it out, or install g++")


def is_worth_compiling(device: torch.device, flops: float | None) -> bool:
    """Whether compiling saves more time than it takes: our own network on a GPU, with work enough.

    Arguments as for `choose_compiled`.
    """
    return device.type == "cuda" and flops is not None and flops >= COMPILE_FLOPS


@functools.cache
def compiler_problem(device: torch.device) -> str | None:
    """Why torch cannot compile for this device, in one line; None if it can. Found by compiling a sum, which takes seconds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own parts
            torch.compile(lambda x: x.cos() + 1)(torch.zeros(4, device=device))
    except Exception as error:  # whatever the compilers run into: Triton's may fail as a subprocess without Python's headers
        return (str(error).strip() or repr(error)).splitlines()[0]
    return None


def power_of_two(count: int) -> int:
    """The largest power of two that is at most `count`, and at least 1."""
    return 1 << max(0, count.bit_length() - 1)
