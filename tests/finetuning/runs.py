"""Small real runs: a folder of pictures, a configuration, and a process of its own to kill."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino_extract.finetuning.config import FinetuneConfig
from dino_extract.finetuning.presets import preset_config, to_json, with_values

REPOSITORY = Path(__file__).parents[2]
# What `torchrun` and the kill test start: a run from a configuration file, its lines on stderr, the exit code of its error.
SCRIPT = """
import sys
import torch
from dino_extract.errors import DinoExtractError
from dino_extract.finetuning.loop import train
from dino_extract.finetuning.presets import from_json
torch.set_num_threads(1)
try:
    train(from_json(open(sys.argv[1]).read()), lambda line: print(line, file=sys.stderr, flush=True))
except DinoExtractError as error:
    print(error.message, file=sys.stderr)
    sys.exit(error.exit_code)
"""
SMALL = {
    "objective.dino_head.n_prototypes": 32,
    "objective.dino_head.hidden_dim": 32,
    "objective.dino_head.bottleneck_dim": 16,
    "crops.global_crops_size": 28,
    "crops.local_crops_size": 14,
    "crops.local_crops_number": 2,
    "monitor.images": 8,
}


def make_pictures(folder: Path, count: int, *, broken: int = 0, seed: int = 0) -> Path:
    """A folder of small JPEGs, the last `broken` of them cut in half."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = folder / f"{number:03d}.jpg"
        Image.fromarray(coarse).resize((40, 32)).save(path)
        if number >= count - broken:
            path.write_bytes(path.read_bytes()[:200])
    return folder


def small_config(pictures: Path, output: Path, **values: Any) -> FinetuneConfig:
    """A run of `tiny` from scratch with crops of 28 and 14 pixels; `values` are dotted names with `__` for the dot."""
    config = replace(
        preset_config("small", from_scratch=True), sources=(str(pictures),), output=str(output), model="tiny", batch=4, steps=4
    )
    config = replace(config, workers=1, device="cpu", dtype="float32", log_steps=1)
    return with_values(with_values(config, SMALL), {name.replace("__", "."): value for name, value in values.items()})


def start_process(config: FinetuneConfig, folder: Path, *launcher: str) -> subprocess.Popen[bytes]:
    """The run in a process of its own, or under a launcher such as `torchrun`."""
    script, settings = folder / "run.py", folder / "asked.json"
    script.write_text(SCRIPT)
    settings.write_text(to_json(config))
    command = [*(launcher or (sys.executable,)), str(script), str(settings)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=_environment(), stderr=subprocess.PIPE)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
