"""What a run will do, resolved from its options."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_extract.config import EmbedConfig
from dino_extract.embedding.job import Job, prepare
from dino_extract.errors import SourceError
from dino_extract.images.preprocess import Preprocess, preprocess_image
from tests.sample_images import save_pictures

CONFIG = EmbedConfig(model="tiny", random_weights=0, size="28")


@pytest.mark.parametrize("sources", [["photos/*/*.png"], ["photos", "photos/odd"], ["-"]])
def test_what_has_no_name_needs_one_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str]) -> None:
    """A pattern, several sources and a list do not say what the file should be called."""
    save_pictures(tmp_path / "photos", range(2))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SourceError, match="need a name for the file") as caught:
        prepare(sources, None, CONFIG)

    assert caught.value.hint == "give it with `-o FILE.h5`"


def test_folder_that_looks_like_a_pattern_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is there names its file, brackets or not."""
    save_pictures(tmp_path / "photos[1]", range(2))
    monkeypatch.chdir(tmp_path)

    assert prepare(["photos[1]"], None, CONFIG).output == "photos[1].h5"


def test_output_in_its_own_folder_is_no_image(tmp_path: Path) -> None:
    """A finished file without suffix inside the source is not among the images of the next run."""
    save_pictures(tmp_path, range(2))
    (tmp_path / "feats").write_bytes(b"an earlier result")

    assert len(prepare([str(tmp_path)], tmp_path / "feats", CONFIG).manifest) == 2


def test_a_plan_counts_reading_and_decoding(tmp_path: Path) -> None:
    """Twenty photographs of two million pixels: the plan has about the time that Pillow takes for them, beside that of the model."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8))
    noise.save(tmp_path / "0.png", compress_level=1)
    for number in range(1, 20):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    start = time.perf_counter()
    for number in range(4):
        preprocess_image(Image.open(tmp_path / f"{number}.png").convert("RGB"), Preprocess("crop", 28, 28))
    pillow_s = (time.perf_counter() - start) / 4 * 20

    plan = prepare([str(tmp_path)], tmp_path / "x.h5", replace(CONFIG, workers=1, device="cpu")).plan()

    assert pillow_s / 4 < plan.decode_seconds < pillow_s * 4
    assert plan.seconds == pytest.approx(plan.decode_seconds + plan.model_seconds, abs=0.15)
    assert f"reading and decoding {plan.decode_seconds:,.0f} s" in plan.text()


def test_gpus_that_would_be_idle_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run takes one of several GPUs it says how to use them all; a shard, or a run on a CPU, does not."""
    save_pictures(tmp_path / "photos", range(2))
    job = prepare([str(tmp_path / "photos")], tmp_path / "x.h5", CONFIG)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    note = "note: one of 4 GPUs is used; `--device all` uses all"

    def with_settings(**changes: Any) -> Job:
        return replace(job, recipe=replace(job.recipe, settings=replace(job.settings, **changes)))

    on_gpu = with_settings(devices=("cuda",))

    assert note in on_gpu.describe()
    assert note not in job.describe()
    assert note not in with_settings(devices=("cuda:0", "cuda:1")).describe()
    assert note not in with_settings(devices=("cuda",), config=replace(CONFIG, shard="1/4")).describe()
