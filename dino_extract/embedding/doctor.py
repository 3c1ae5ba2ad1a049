"""What this machine is, what is wrong with it, and whether the numbers come out right here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence

from dino_extract import __version__
from dino_extract.embedding.findings import Finding
from dino_extract.weights import cache_dir

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "h5py", "safetensors")
LEAST_FREE = 1_000_000_000  # bytes of disk space; less is a problem


def doctor() -> Iterator[Finding]:
    """Check Python, packages, CPU, GPU, caches and disk, and compare the engine with the reference network; each finding at once."""
    yield from check_software()
    yield check_cache()
    yield check_disk(".")
    yield check_timm()
    try:
        from dino_extract.embedding.self_test import check_hardware, check_parity  # that torch cannot be loaded is a finding too
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding("import torch", "problem", str(error).splitlines()[0], "install torch again")
        return
    yield from check_hardware()
    yield from check_parity()


def check_software(packages: Sequence[str] = PACKAGES) -> Iterator[Finding]:
    """The versions of Python and of the packages that everything needs."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Finding("dino-extract", "ok", __version__)
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable}), {system}")
    for package in packages:
        try:
            yield Finding(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "problem", "not installed", f"pip install {package}")


def check_timm() -> Finding:
    """Whether timm can be imported; a CPU-only torch beside an ordinary torchvision breaks it."""
    try:
        import timm  # costs seconds, and whether it imports is the question
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        advice = "only `--model timm/...` needs it; install torch and torchvision from the same index, both with or both without `+cpu`"
        return Finding("import timm", "problem", reason, advice)
    return Finding("import timm", "ok", f"{timm.__version__} imports")


def check_cache() -> Finding:
    """Where downloaded weights are kept, and whether they can be."""
    cache = cache_dir()
    place = cache
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        return Finding("cache", "problem", f"{cache} cannot be written", "set DINO_EXTRACT_CACHE to a folder that you can write")
    return Finding("cache", "ok", f"{cache} ({'exists' if place == cache else 'not made yet'})")


def check_disk(folder: str, least_free: int = LEAST_FREE) -> Finding:
    """The free space of the disk of a folder."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {os.path.abspath(folder)}"
    return Finding("disk", "ok", found) if free > least_free else Finding("disk", "problem", found, "free some space before you embed")
