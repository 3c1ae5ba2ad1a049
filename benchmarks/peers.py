"""Compare dino-extract with what else turns a folder of photographs into DINOv2 features: same images, same model shape, features on disk.

    python benchmarks/peers.py photos DIR [--from PHOTOS] [--count N] [--size 500x375]   make a folder of photographs
    python benchmarks/peers.py compare DIR [--peers a,b] [--rounds N] [--json FILE]      run the peers in turn, print medians and ratios
    python benchmarks/peers.py run PEER DIR                                              run one peer once, print its figures as JSON

Every peer runs in a process of its own, in turn with the others, so that what else the machine does falls on all of them alike.
Weights are random everywhere: speed does not depend on them. Times begin when the model is built and the images are found, and
end when the features are on disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

BATCH = 32
SIDE = 224
WORKERS = len(os.sched_getaffinity(0))
WIDTHS = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # embedding width, blocks, heads
OURS = {"small": "vits14", "base": "vitb14", "large": "vitl14"}


@contextmanager
def measured(figures: dict[str, float]) -> Iterator[None]:
    """Wall seconds and processor seconds, of this process and its ended children, of what runs inside."""
    wall, used = time.perf_counter(), processor_seconds()
    yield
    figures["seconds"] = time.perf_counter() - wall
    figures["processor_seconds"] = processor_seconds() - used


def processor_seconds() -> float:
    """Processor time of this process and of those children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_ours(folder: Path, output: Path, model: str, dtype: str) -> dict[str, float]:
    """dino-extract itself, with its defaults."""
    from dino_extract.config import EmbedConfig
    from dino_extract.embedding.job import prepare
    from dino_extract.embedding.pipeline import run

    figures: dict[str, float] = {}
    job = prepare([str(folder)], output, EmbedConfig(model=OURS[model], random_weights=0, dtype=dtype))  # type: ignore[arg-type]
    with measured(figures):
        result = run(job)
    return {**figures, "images": result.embedded}


def run_timm(folder: Path, output: Path, model: str, dtype: str) -> dict[str, float]:
    """The script everybody writes: Pillow and torchvision transforms in DataLoader workers, a timm model, h5py."""
    import h5py
    import timm
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Photographs(Dataset):  # type: ignore[type-arg]
        transform = transforms.Compose(
            [
                transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(SIDE),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.transform(Image.open(paths[index]).convert("RGB"))

    paths = sorted(folder.rglob("*.jpg"))
    network = timm.create_model(f"vit_{model}_patch14_dinov2", pretrained=False, num_classes=0, img_size=SIDE).eval()
    figures: dict[str, float] = {}
    with measured(figures), h5py.File(output, "w") as file, torch.inference_mode():
        features = file.create_dataset("features", (len(paths), network.num_features), "f2")
        start = 0
        for images in DataLoader(Photographs(), batch_size=BATCH, num_workers=WORKERS):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                rows = network(images)
            features[start : start + len(rows)] = rows.half().numpy()
            start += len(rows)
    return {**figures, "images": start}


def run_transformers(folder: Path, output: Path, model: str, dtype: str) -> dict[str, float]:
    """The Hugging Face image-feature-extraction pipeline, in batches."""
    import h5py
    import numpy as np
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, pipeline

    paths = sorted(str(path) for path in folder.rglob("*.jpg"))
    width, depth, heads = WIDTHS[model]
    config = Dinov2Config(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=518, patch_size=14)
    processor = BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    extract = pipeline("image-feature-extraction", model=Dinov2Model(config).eval(), image_processor=processor, framework="pt")
    figures: dict[str, float] = {}
    with measured(figures), h5py.File(output, "w") as file, torch.inference_mode():
        features = file.create_dataset("features", (len(paths), width), "f2")
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            for row, tokens in enumerate(extract((path for path in paths), batch_size=BATCH, return_tensors=True)):
                features[row] = np.asarray(tokens[0, 0].float()).astype(np.float16)
    return {**figures, "images": len(paths)}


def run_dinotool(folder: Path, output: Path, model: str, dtype: str) -> dict[str, float]:
    """The dinotool command with one vector for each image, in batches; a timm network stands in for the one that it downloads."""
    import timm
    from dinotool import cli

    assert dtype == "float32", "dinotool has no other"
    network = timm.create_model(f"vit_{model}_patch14_dinov2", pretrained=False, num_classes=0, img_size=SIDE)
    network.patch_size = 14
    cli.load_model = lambda name: network
    config = cli.DinotoolConfig(
        input=str(folder), output=str(output), input_size=(SIDE, SIDE), batch_size=BATCH, save_features="frame", no_vis=True
    )
    figures: dict[str, float] = {}
    with measured(figures), redirect_stdout(sys.stderr):
        cli.DinotoolProcessor(config).run()
    return {**figures, "images": len(sorted(folder.rglob("*.jpg")))}


PEERS: dict[str, tuple[str, Callable[[Path, Path, str, str], dict[str, float]], str]] = {  # name -> package, function, dtype
    "timm-fp32": ("timm", run_timm, "float32"),
    "timm-bf16": ("timm", run_timm, "bfloat16"),
    "transformers-fp32": ("transformers", run_transformers, "float32"),
    "dinotool-fp32": ("dinotool", run_dinotool, "float32"),
    "ours": ("dino_extract", run_ours, "auto"),
    "ours-fp32": ("dino_extract", run_ours, "float32"),
}


def run_one(peer: str, folder: Path, model: str) -> dict[str, float]:
    """Figures of one run of a peer: images, wall and processor seconds, peak memory in MB of its largest process."""
    _, function, dtype = PEERS[peer]
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        figures = function(folder, Path(scratch) / "features.h5", model, dtype)
    figures["memory_mb"] = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    return figures


def compare(folder: Path, peers: list[str], rounds: int, model: str) -> dict[str, dict[str, float]]:
    """Medians over the rounds for each peer, and medians of its ratio to the first peer in the same round."""
    runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for number in range(rounds):
        for peer in peers:
            command = [sys.executable, __file__, "run", peer, str(folder), "--model", model]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            runs[peer].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {peer} {json.dumps(runs[peer][-1])}", file=sys.stderr, flush=True)
    table = {}
    for peer in peers:
        pairs = list(zip(runs[peers[0]], runs[peer], strict=True))
        table[peer] = {
            "images_per_s": statistics.median(run["images"] / run["seconds"] for run in runs[peer]),
            "images_per_processor_s": statistics.median(run["images"] / run["processor_seconds"] for run in runs[peer]),
            "speed_ratio": statistics.median(first["seconds"] / run["seconds"] for first, run in pairs),
            "processor_ratio": statistics.median(first["processor_seconds"] / run["processor_seconds"] for first, run in pairs),
            "memory_mb": statistics.median(run["memory_mb"] for run in runs[peer]),
        }
    return table


def make_photographs(folder: Path, source: Path | None, count: int, size: tuple[int, int]) -> None:
    """Write JPEGs of one size, quality 90: photographs from a folder, enlarged or reduced, or else noise with natural statistics."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")) if source else []
    draw = np.random.default_rng(0)
    for index in range(count):
        if paths:
            image = Image.open(paths[index * len(paths) // count]).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        else:  # octaves of equal weight: the 1/f spectrum of natural images
            octaves = [Image.fromarray(draw.integers(0, 256, (2**k, 2**k, 3), dtype=np.uint8)).resize(size) for k in range(1, 9)]
            image = Image.fromarray(np.mean([np.asarray(octave) for octave in octaves], axis=0).astype(np.uint8))
        image.save(folder / f"{index:05}.jpg", quality=90)


def main() -> None:
    """Read arguments, do one of the three things above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["photos", "compare", "run"])
    parser.add_argument("arguments", nargs="+", help="DIR, or PEER DIR")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=list(WIDTHS), default="small")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--size", default="500x375")
    options = parser.parse_args()
    folder = Path(options.arguments[-1])
    if options.action == "photos":
        width, height = map(int, options.size.split("x"))
        make_photographs(folder, options.source, options.count, (width, height))
    elif options.action == "run":
        print(json.dumps(run_one(options.arguments[0], folder, options.model)))
    else:
        wanted = options.peers.split(",")
        missing = [peer for peer in wanted if importlib.util.find_spec(PEERS[peer][0]) is None]
        if missing:
            print(f"left out, not installed: {', '.join(missing)}", file=sys.stderr)
        table = compare(folder, [peer for peer in wanted if peer not in missing], options.rounds, options.model)
        print("| peer | images/s | images per processor second | speed ratio | processor ratio | memory of the largest process |")
        print("|---|---|---|---|---|---|")
        for peer, row in table.items():
            rates = f"{row['images_per_s']:.1f} | {row['images_per_processor_s']:.1f}"
            print(f"| {peer} | {rates} | {row['speed_ratio']:.2f} | {row['processor_ratio']:.2f} | {row['memory_mb']:,.0f} MB |")
        if options.json:
            options.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
