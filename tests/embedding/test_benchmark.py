"""A benchmark measures every stage, counts the work right, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_extract.config import EmbedConfig
from dino_extract.embedding import benchmark
from dino_extract.embedding.benchmark import BenchmarkReport, Stage, measure_peak
from dino_extract.embedding.stages import REMEDIES
from dino_extract.errors import ConfigError

CONFIG = EmbedConfig(model="vits14", random_weights=0, size="28", dtype="float32", workers=1)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of five images, one of them damaged."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff but no image")
    return folder


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that end after one round."""
    monkeypatch.setattr(benchmark, "MODEL_SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "RESIZE_SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "PEAK_SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "PEAK_SIDE", {"cpu": 64, "cuda": 64})


@pytest.mark.usefixtures("no_waiting")
def test_every_stage_and_the_whole_are_measured(photographs: Path, tmp_path: Path) -> None:
    """Each stage has its images, time and rate, and a damaged image is only counted in the whole."""
    report = benchmark.benchmark([str(photographs)], CONFIG, scratch=str(tmp_path))

    assert list(report.stages) == ["read", "decode", "resize", "model", "write"]
    assert [report.stages[name].images for name in ("read", "decode", "resize", "write")] == [4, 4, 4, 5]
    assert report.whole.images == 5
    for stage in [*report.stages.values(), report.whole]:
        assert stage.images_per_s == pytest.approx(stage.images / stage.seconds)
    assert REMEDIES[report.bound] in report.advice


@pytest.mark.usefixtures("no_waiting")
def test_nothing_is_left_behind(photographs: Path, tmp_path: Path) -> None:
    """After a benchmark the scratch folder holds what it held before."""
    before = sorted(tmp_path.rglob("*"))

    benchmark.benchmark([str(photographs)], CONFIG, images=2, scratch=str(tmp_path))

    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_waiting")
def test_images_are_made_up_where_none_are_given(tmp_path: Path) -> None:
    """Without a source a benchmark makes as many images as it was asked for."""
    report = benchmark.benchmark([], CONFIG, images=3, scratch=str(tmp_path))

    assert report.whole.images == 3


def test_images_of_their_own_sizes_are_refused(tmp_path: Path) -> None:
    """`--preprocess native` has no batch to measure, and the message says so."""
    with pytest.raises(ConfigError, match="needs images of one size"):
        benchmark.benchmark([], EmbedConfig(random_weights=0, preprocess="native"), scratch=str(tmp_path))


@pytest.mark.usefixtures("no_waiting")
def test_the_peak_of_a_cpu_is_a_rate_that_a_cpu_can_have() -> None:
    """The measured rate of matrix products is between a tenth of a GFLOP/s and what no CPU reaches."""
    assert 1e8 < measure_peak(torch.device("cpu"), torch.float32) < 1e14


def test_the_report_names_stages_peak_and_bound() -> None:
    """The text for people has a line for every stage, the share of the peak, and the advice."""
    stages = {name: Stage(100, 0.5, 200.0) for name in ("read", "decode", "resize", "model", "write")}
    report = BenchmarkReport(
        "vits14", "cpu", "bfloat16", 2, 32, "flash", True, "host", stages, Stage(100, 4.0, 25.0), 50.0, 400.0, 300.0, "model", "buy a GPU"
    )

    text = report.text()

    assert [line.split()[0] for line in text.splitlines()[2:7]] == ["read", "decode", "resize", "model", "write"]
    assert "attention flash, compiled, images resized by the host" in text
    assert "300 of 400 GFLOP/s, 75% of the peak" in text
    assert "50% of the 50.0 images/s" in text
    assert text.endswith("buy a GPU")


@pytest.mark.usefixtures("no_waiting")
def test_resizing_beside_the_model_is_measured_there(photographs: Path, tmp_path: Path) -> None:
    """With `resize="device"` the stage is timed on the device, and the report says so."""
    report = benchmark.benchmark([str(photographs)], replace(CONFIG, resize="device"), scratch=str(tmp_path))

    assert report.resize == "device"
    assert report.stages["resize"].images == 4
    assert "images resized by the device" in report.text()


@pytest.mark.parametrize(
    ("shares_cores", "resizes_on_device", "load"),
    [
        (True, False, {"read": 0.01, "decode": 0.1, "resize": 0.05, "model": 0.05, "write": 0.025}),
        (False, False, {"decode": 0.16, "model": 0.05, "write": 0.025}),
        (False, True, {"decode": 0.11, "resize": 0.25, "write": 0.025}),
    ],
)
def test_stages_that_share_a_resource_are_one(shares_cores: bool, resizes_on_device: bool, load: dict[str, float]) -> None:
    """On 4 cores: each stage by itself on a CPU; beside a GPU those of the cores together, and those of the GPU."""
    rates = {"read": 25.0, "decode": 2.5, "resize": 5.0, "model": 20.0, "write": 40.0}

    got = benchmark._load_of(
        {name: Stage(1, 1 / rate, rate) for name, rate in rates.items()}, 4, shares_cores=shares_cores, resizes_on_device=resizes_on_device
    )

    assert got == pytest.approx(load)
