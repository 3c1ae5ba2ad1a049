"""What a GPU machine reaches, in one command: the model alone in every form, its exactness, decoding, resizing, and whole runs from JPEGs.

    python benchmarks/gpu.py                                       S, B, L and g at 224 and 518 pixels; some 15 minutes
    python benchmarks/gpu.py --models vits14 --sizes 224 --forms eager,graph
    python benchmarks/gpu.py --device cpu --models tiny --sizes 28 --images 8 --seconds 0.1 --forms eager      does it run at all

Weights are random: speed does not depend on them. The JPEGs are made here, of 500 x 375 pixels and about 70 KB; whole runs read
hard links to them, so they measure decoding and not the disk. Tables are in Markdown, for docs/benchmarks.md; `--json` keeps the figures.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from dino_extract.backbone import Backbone
from dino_extract.config import EmbedConfig
from dino_extract.embedding.benchmark import make_images, measure_model, measure_peak, measure_resize
from dino_extract.embedding.job import prepare
from dino_extract.embedding.pipeline import run
from dino_extract.engine import (
    ComputeDtype,
    Engine,
    choose_batch_size,
    choose_device,
    choose_dtype,
    cuda,
    forward_flops,
    require_decoder,
)
from dino_extract.engine.jpeg import decode_jpegs
from dino_extract.engine.plan import compiler_problem
from dino_extract.errors import ConfigError
from dino_extract.images.decode import decode_image
from dino_extract.images.preprocess import Jpeg, Preprocess, preprocess
from dino_extract.tokens import TokenSpec
from dino_extract.weights import load_backbone

SPEC = TokenSpec(("cls", "patch"))  # what is computed and stored of each image; all of the last block is needed
FORMS = ("eager", "graph", "compiled")  # kernel by kernel; as one CUDA graph, the default; compiled and as a graph
SMALL_FLOPS = 12e9  # of ViT-S at 224 pixels
DECODED_SIZES = ((500, 375), (3000, 2000))  # width and height of the JPEGs that decoders are compared on
DECODED = (256, 32)  # how many of each at a time
WITNESSES = 8  # images whose tokens are compared with those of the readable backbone in float32


@dataclass(frozen=True)
class Settings:
    """What to measure with.

    Args:
        device: where the model runs.
        dtype: of its matrix products.
        images: pictures (H, W, 3) uint8, decoded.
        seconds: to measure a model alone for.
        peak: rate of large matrix products, in operations per second.
    """

    device: torch.device
    dtype: ComputeDtype
    images: list[np.ndarray]
    seconds: float
    peak: float


def measure_forms(name: str, backbone: Backbone, side: int, forms: list[str], settings: Settings) -> list[dict[str, Any]]:
    """One row for each form of a model: rate, share of the peak, time until the first batch, and distance from the float32 reference."""
    options = Preprocess(height=side, width=side, patch=backbone.patch_size, mean=backbone.mean, std=backbone.std)
    batch_size = choose_batch_size(backbone, (side, side), settings.device, 2**30)
    pixels = np.stack([preprocess(settings.images[number % len(settings.images)], options) for number in range(batch_size)])
    want = reference(backbone, pixels[:WITNESSES], settings.device)
    flops = forward_flops(backbone, (side, side), whole=True)
    rows = []
    for form in forms:
        with mock.patch.object(cuda, "MAX_GRAPHS", 0 if form == "eager" else cuda.MAX_GRAPHS):
            start = time.perf_counter()
            engine = Engine(
                backbone,
                SPEC,
                device=settings.device,
                dtype=settings.dtype,
                store_dtype="float32",
                batch_size=batch_size,
                compiled=form == "compiled",
                size=(side, side),
            )
            arrays = engine(pixels)
            first_s = time.perf_counter() - start
            stage, _ = measure_model(engine, pixels, settings.seconds)
        rows.append(
            {
                "model": name,
                "side": side,
                "form": form,
                "batch": engine.batch_size,
                "attention": engine.attention,
                "images_per_s": stage.images_per_s,
                "peak_share": None if flops is None else flops * stage.images_per_s / settings.peak,
                "first_batch_s": first_s,
                **distance({key: values[:WITNESSES] for key, values in arrays.items()}, want),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        del engine
        torch.compiler.reset()  # or it would count all models as one that changes, and give up
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


@torch.inference_mode()
def reference(backbone: Backbone, pixels: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
    """CLS and patch tokens of the readable backbone in float32, for pixels (B, H, W, 3) uint8."""
    mean, std = (torch.tensor(stat, device=device).view(3, 1, 1) for stat in (backbone.mean, backbone.std))
    images = (torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2) / 255 - mean) / std
    tokens = backbone.to(device)(images)
    backbone.to("cpu")
    grid = (pixels.shape[1] // backbone.patch_size, pixels.shape[2] // backbone.patch_size)
    return {"features": tokens.cls.cpu().numpy(), "patch_features": tokens.patches.unflatten(1, grid).cpu().numpy()}


def distance(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    """The least cosine of any token, and the largest difference of a component relative to the norm of its token."""
    cosines, differences = [], []
    for name, expected in want.items():
        norms = np.linalg.norm(expected, axis=-1)
        cosines.append(((got[name] * expected).sum(-1) / (norms * np.linalg.norm(got[name], axis=-1))).min())
        differences.append((np.abs(got[name] - expected).max(-1) / norms).max())
    return {"least_cosine": float(min(cosines)), "largest_difference": float(max(differences))}


def measure_decoders(images: list[np.ndarray], seconds: float, device: torch.device) -> list[dict[str, Any]]:
    """One row for each size of JPEG: the rate of Pillow on one core and of the device, and how far the pictures of the two are apart."""
    rows = []
    for (width, height), count in zip(DECODED_SIZES, DECODED, strict=True):
        files = []
        for image in images[:count]:
            file = io.BytesIO()
            Image.fromarray(image).resize((width, height)).save(file, "JPEG", quality=90)
            files.append(file.getvalue())
        jpegs = [Jpeg(np.frombuffer(content, np.uint8).copy(), (height, width)) for content in files]
        pictures = decode_jpegs(jpegs, device)
        errors = [picture.cpu().numpy().astype(int) - decode_image(content) for picture, content in zip(pictures, files, strict=True)]
        rows.append(
            {
                "width": width,
                "height": height,
                "bytes": sum(map(len, files)) // len(files),
                "pillow_per_core": rate(lambda files=files: [decode_image(content) for content in files], len(files), seconds),
                "device": rate(lambda jpegs=jpegs: decode_jpegs(jpegs, device), len(jpegs), seconds),
                "mean_difference": float(np.mean([np.abs(error).mean() for error in errors])),
                "largest_difference": max(int(np.abs(error).max()) for error in errors),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def rate(work: Callable[[], object], count: int, seconds: float) -> float:
    """How many things per second, when `work` does `count` at a time."""
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        done += count
    return done / (time.perf_counter() - start)


def measure_run(name: str, folder: Path, count: int, where: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A whole run over the JPEGs of a folder, at 224 pixels (28 for `tiny`), with CLS alone; `where` they are decoded and resized."""
    size = "28" if name == "tiny" else "224"
    config = EmbedConfig(model=name, random_weights=0, size=size, device=str(settings.device), **where)
    with tempfile.TemporaryDirectory(prefix="dino-extract-gpu-") as scratch:
        result = run(prepare([str(folder)], os.path.join(scratch, "whole.h5"), config))
    assert (result.embedded, result.failed) == (count, 0), f"expected {count} images embedded, got {result}"
    row = {
        "model": name,
        **where,
        "images": count,
        "seconds": result.seconds,
        "images_per_s": count / result.seconds,
        **{f"waited_for_{stage}_s": seconds for stage, seconds in result.waited_s.items()},
    }
    print(json.dumps(row), flush=True)
    return row


def link_images(folder: Path, images: Path, count: int) -> None:
    """A folder of `count` JPEGs: links to those there are, again and again."""
    folder.mkdir()
    originals = sorted(images.iterdir())
    for number in range(count):
        os.link(originals[number % len(originals)], folder / f"{number:07}.jpg")


def table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, str]]) -> str:
    """Markdown of some columns: key -> heading and number format."""
    lines = ["| " + " | ".join(heading for heading, _ in columns.values()) + " |", "|---" * len(columns) + "|"]
    cells = [["-" if row[key] is None else format(row[key], form) for key, (_, form) in columns.items()] for row in rows]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in cells)])


def machine(device: torch.device) -> str:
    """The machine in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} CPU cores, torch {torch.__version__}, Python {platform.python_version()}"


def measure(models: list[str], sides: list[int], forms: list[str], num_images: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """Everything, as it stands in the JSON file."""
    report: dict[str, Any] = {"machine": machine(device), "forms": [], "resize": [], "decoders": [], "runs": []}
    with tempfile.TemporaryDirectory(prefix="dino-extract-gpu-") as scratch:
        make_images(os.path.join(scratch, "images"), max(1, min(num_images // 2, 512)))
        images = [np.asarray(Image.open(path)) for path in sorted(Path(scratch, "images").iterdir())[:256]]
        dtype = choose_dtype("auto", device)
        peak = measure_peak(device, getattr(torch, dtype), min(seconds, 1.0))
        settings = Settings(device, dtype, images, seconds, peak)
        report["peak_tflops"], report["dtype"] = peak / 1e12, dtype
        for side in sides:
            stage = measure_resize(images, Preprocess(height=side, width=side), device)
            report["resize"].append({"side": side, "images_per_s": stage.images_per_s})
        places: list[dict[str, Any]] = [{"decode": "host", "resize": "host"}, {"decode": "host", "resize": "device"}]
        if decodes_on_device():
            report["decoders"] = measure_decoders(images, min(seconds, 2.0), device)
            places.append({"decode": "device", "resize": "device"})
        for name in models:
            backbone = load_backbone(name, random_weights=0)
            for side in sides:
                report["forms"] += measure_forms(name, backbone, side, forms, settings)
            work = forward_flops(backbone, (224, 224), whole=True) or SMALL_FLOPS
            count = max(8, round(num_images * min(1.0, SMALL_FLOPS / work)))
            del backbone
            folder = Path(scratch, name)
            link_images(folder, Path(scratch, "images"), count)
            report["runs"] += [measure_run(name, folder, count, where, settings) for where in places]
    return report


def decodes_on_device() -> bool:
    """Whether torchcodec is there; says why not."""
    try:
        require_decoder()
    except ConfigError as error:
        print(f"left out: {error.message}", file=sys.stderr)
        return False
    return True


def print_tables(report: dict[str, Any]) -> None:
    """What was measured, for docs/benchmarks.md."""
    print(f"\n{report['machine']}; matrix products in {report['dtype']} reach {report['peak_tflops']:,.1f} TFLOP/s\n")
    forms = {
        "model": ("model", ""),
        "side": ("pixels", ""),
        "form": ("form", ""),
        "batch": ("batch", ""),
        "attention": ("attention", ""),
        "images_per_s": ("images/s", ",.0f"),
        "peak_share": ("of the peak", ".0%"),
        "first_batch_s": ("s to the first batch", ".1f"),
        "least_cosine": ("least cosine", ".6f"),
        "largest_difference": ("largest difference", ".1e"),
    }
    print(table(report["forms"], forms))
    print("\n" + table(report["resize"], {"side": ("pixels", ""), "images_per_s": ("resized images/s", ",.0f")}))
    decoders = {
        "width": ("width", ",d"),
        "height": ("height", ",d"),
        "bytes": ("bytes", ",d"),
        "pillow_per_core": ("Pillow on a core, images/s", ",.0f"),
        "device": ("torchcodec on the device, images/s", ",.0f"),
        "mean_difference": ("mean difference in grey levels", ".2f"),
        "largest_difference": ("largest", "d"),
    }
    print("\n" + table(report["decoders"], decoders))
    where = {"decode": ("decoded by", ""), "resize": ("resized by", "")}
    columns = {"model": ("model", ""), **where, "images": ("images", ","), "images_per_s": ("images/s", ",.0f")}
    waited = {f"waited_for_{stage}_s": (f"s waiting for {stage}", ".1f") for stage in ("read", "decode", "model", "write")}
    print("\n" + table(report["runs"], {**columns, "seconds": ("seconds", ".1f"), **waited}))


def main() -> None:
    """Read arguments, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vits14,vitb14,vitl14,vitg14")
    parser.add_argument("--sizes", default="224,518")
    parser.add_argument("--forms", default=",".join(FORMS), help="of the model alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=200_000, help="of a whole run with ViT-S; larger models get fewer")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of the model alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the reference is float32
    device = choose_device(options.device)
    forms = options.forms.split(",")
    if "compiled" in forms and (problem := compiler_problem(device)):
        print(f"left out, torch cannot compile here: {problem}", file=sys.stderr)
        forms.remove("compiled")
    sides = [int(side) for side in options.sizes.split(",")]
    report = measure(options.models.split(","), sides, forms, options.images, options.seconds, device)
    print_tables(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
