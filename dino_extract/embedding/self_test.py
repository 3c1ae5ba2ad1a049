"""What `doctor` checks with torch: the CPU and the GPUs, and whether the engine gives the right numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch

from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
from dino_extract.embedding.findings import Finding
from dino_extract.engine import ComputeDtype, Engine, choose_device, choose_dtype
from dino_extract.tokens import TokenSpec


def check_hardware() -> Iterator[Finding]:
    """The CPU, every GPU that torch can use, and the precision of the model on each."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("cpu", "ok", f"{cpus} usable CPUs, {capability}, computes in {choose_dtype('auto', torch.device('cpu'))}")
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
        yield Finding("gpu", "note", f"none that torch can use ({build})")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        dtype = choose_dtype("auto", choose_device(f"cuda:{index}"))
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding(f"cuda:{index}", "ok", f"{torch.cuda.get_device_name(index)}, {memory}, computes in {dtype}")


def check_parity(least_cosine: float = 0.9999) -> Iterator[Finding]:
    """Whether the fast engine gives the numbers of the reference network on this machine, in each precision that it uses.

    Args:
        least_cosine: smallest cosine between the two that is right in bfloat16; in float32 a tenth of the difference is allowed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = DinoVisionTransformer(BackboneConfig(embed_dim=384, depth=4, num_heads=6, image_size=224, layer_scale_init=1.0)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.inference_mode():
        want = backbone((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).cls
    device = choose_device("auto")
    dtypes: set[ComputeDtype] = {"float32", choose_dtype("auto", device)}
    for dtype in sorted(dtypes, reverse=True):
        engine = Engine(backbone, TokenSpec(), device=device, dtype=dtype, store_dtype="float32", batch_size=2)
        got = torch.from_numpy(engine(pixels)["features"])
        cosine = torch.cosine_similarity(got, want).min().item()
        relative = ((got - want).norm(dim=1) / want.norm(dim=1)).max().item()
        good = cosine >= (1 - (1 - least_cosine) / 10 if dtype == "float32" else least_cosine)
        advice = "" if good else "do not trust features of this machine, and report this output"
        found = f"{dtype} on {device}: cosine {cosine:.6f}, relative difference {relative:.1e}"
        yield Finding("parity", "ok" if good else "problem", found, advice)
