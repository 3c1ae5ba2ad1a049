"""Whether large outputs hold the model back: whole runs against the model alone on the same batches.

    python benchmarks/outputs.py PHOTOGRAPHS                      ViT-S; CLS, patches at 518 pixels, four layers, whole images
    python benchmarks/outputs.py PHOTOGRAPHS --model tiny --images 64 --rounds 1

Weights are random: speed does not depend on them. A run begins when the images are found and the model is loaded, and ends when the file is
complete. The model alone gets the pixels that the decoders gave before, as they come in a run, from memory. Both in turn; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import deque
from typing import Any

import numpy as np

from dino_extract.config import EmbedConfig
from dino_extract.embedding.job import Job, prepare
from dino_extract.embedding.pipeline import BATCHES_IN_FLIGHT, run
from dino_extract.images.preprocess import DeviceImages

CASES: dict[str, dict[str, Any]] = {
    "CLS at 224": {"size": "224"},
    "CLS and patches at 518": {"size": "518", "tokens": "cls,patch"},
    "CLS and patches of the last 4 blocks at 224": {"size": "224", "tokens": "cls,patch", "layers": "last4"},
    "CLS and patches, whole images (`native`, 224)": {"size": "224", "tokens": "cls,patch", "preprocess": "native"},
    "the same of the last 4 blocks": {"size": "224", "tokens": "cls,patch", "preprocess": "native", "layers": "last4"},
}


def model_seconds(job: Job) -> float:
    """Seconds of the model alone for all images of a job, with as many batches under way as in a run."""
    batches: list[Any] = []
    with job.loader(np.arange(len(job.manifest))) as loader:
        for batch in loader:
            if isinstance(batch.pixels, np.ndarray):
                batches.append(batch.pixels.copy())
            elif job.settings.resizes_on_device:
                batches.append(DeviceImages(batch.pixels, batch.is_resized, job.settings.preprocess))
            else:
                batches.append(np.asarray(batch.pixels[0])[None])
    engine = job.recipe.engine()
    engine(batches[0])  # what the first batch prepares, a run prepares too, but this is about the rest
    under_way: deque[Any] = deque()
    start = time.perf_counter()
    for batch in batches:
        under_way.append(engine.submit(batch))
        if len(under_way) > BATCHES_IN_FLIGHT:
            under_way.popleft().result()
    while under_way:
        under_way.popleft().result()
    return time.perf_counter() - start


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs")
    parser.add_argument("--model", default="vits14")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases with this in their name")
    options = parser.parse_args()
    print("| output | MB/image | model alone, images/s | whole run, images/s | share |\n|---|---|---|---|---|")
    for name, changes in ((name, changes) for name, changes in CASES.items() if options.only in name):
        rates: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                config = EmbedConfig(model=options.model, random_weights=0, **changes)
                target = os.path.join(folder, "x.h5")
                files = sorted(entry.path for entry in os.scandir(options.photographs) if entry.is_file())[: options.images]
                job = prepare(files, target, config)
                alone = model_seconds(job)
                result = run(prepare(files, target, config))
                assert result.failed == 0, "all photographs must be readable"
                size = os.path.getsize(target) / 1e6
            rates.append((len(files) / alone, len(files) / result.seconds))
        alone, whole = (statistics.median(each) for each in zip(*rates, strict=True))
        share = statistics.median(whole / alone for alone, whole in rates)
        print(f"| {name} | {size / len(files):.2f} | {alone:.1f} | {whole:.1f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
