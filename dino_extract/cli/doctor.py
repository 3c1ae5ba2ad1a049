"""`doctor`: what this machine is, what is wrong with it, and whether the numbers come out right here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer

from dino_extract import __version__
from dino_extract.errors import ExitCode

Verdict = Literal["ok", "note", "problem"]

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "h5py", "safetensors")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: its name, what was found, and what to do if that is a problem."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check Python, packages, CPU, GPU, caches and disk, and run a parity self-test.

    Paste its output into a bug report. Ends with 1 if something is wrong.
    """
    findings = [*_software(), _timm(), *_hardware(), *_places(), *_parity()]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.verdict:8}{finding.name:14}{finding.found}")
            if finding.advice:
                typer.echo(f"{'':22}-> {finding.advice}")
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(ExitCode.ERROR)


def _software() -> list[Finding]:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    findings = [
        Finding("dino-extract", "ok", __version__),
        Finding("python", "ok", f"{platform.python_version()} ({sys.executable}), {system}"),
    ]
    for package in PACKAGES:
        try:
            findings.append(Finding(package, "ok", importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package, "problem", "not installed", f"pip install {package}"))
    return findings


def _timm() -> Finding:
    """Whether timm can be imported; a CPU-only torch beside an ordinary torchvision breaks it."""
    try:
        import timm  # costs seconds, and whether it imports is the question
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        advice = "only `--model timm/...` needs it; install torch and torchvision from the same index, both with or both without `+cpu`"
        return Finding("import timm", "problem", reason, advice)
    return Finding("import timm", "ok", f"{timm.__version__} imports")


def _hardware() -> list[Finding]:
    import torch

    from dino_extract.engine import choose_device, choose_dtype

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    findings = [Finding("cpu", "ok", f"{cpus} usable CPUs, {capability}, computes in {choose_dtype('auto', torch.device('cpu'))}")]
    if not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
        findings.append(Finding("gpu", "note", f"none that torch can use ({build})"))
        return findings
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        dtype = choose_dtype("auto", choose_device(f"cuda:{index}"))
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        findings.append(Finding(f"cuda:{index}", "ok", f"{torch.cuda.get_device_name(index)}, {memory}, computes in {dtype}"))
    return findings


def _places() -> list[Finding]:
    from dino_extract.weights import cache_dir

    cache = cache_dir()
    usage = shutil.disk_usage(".")
    free = f"{usage.free / 1e9:.1f} GB free in {os.getcwd()}"
    return [
        Finding("cache", "ok", f"{cache} ({'exists' if cache.is_dir() else 'not made yet'})"),
        Finding("disk", "ok" if usage.free > 1e9 else "problem", free, "" if usage.free > 1e9 else "free some space before embedding"),
    ]


def _parity() -> list[Finding]:
    """Whether the fast engine gives the reference network's numbers on this machine."""
    import numpy as np
    import torch

    from dino_extract.backbone import BackboneConfig, DinoVisionTransformer
    from dino_extract.engine import ComputeDtype, Engine, choose_device, choose_dtype
    from dino_extract.tokens import TokenSpec

    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = DinoVisionTransformer(BackboneConfig(embed_dim=384, depth=4, num_heads=6, image_size=224, layer_scale_init=1.0)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.inference_mode():
        want = backbone((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std).cls
    device = choose_device("auto")
    dtypes: set[ComputeDtype] = {"float32", choose_dtype("auto", device)}
    findings = []
    for dtype in sorted(dtypes, reverse=True):
        engine = Engine(backbone, TokenSpec(), device=device, dtype=dtype, store_dtype="float32", batch_size=2)
        got = torch.from_numpy(engine(pixels)["features"])
        cosine = torch.cosine_similarity(got, want).min().item()
        relative = ((got - want).norm(dim=1) / want.norm(dim=1)).max().item()
        good = cosine >= (0.99999 if dtype == "float32" else 0.9999)
        advice = "" if good else "features of this machine cannot be trusted: report this output"
        found = f"{dtype} on {device}: cosine {cosine:.6f}, relative difference {relative:.1e}"
        findings.append(Finding("parity", "ok" if good else "problem", found, advice))
    return findings
