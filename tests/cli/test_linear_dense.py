"""The `linear-dense` command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dino_extract.analysis.probes.dense_head import DenseHead
from dino_extract.cli.linear_dense import linear_dense
from dino_extract.errors import ConfigError
from tests.analysis.probes.test_linear_dense import scene
from tests.cli.analysis_app import run_command


def test_metrics_are_printed_and_left_out_images_noted(tmp_path: Path) -> None:
    """MIoU and a line per class are data, missing masks are a note."""
    path, folder = scene(tmp_path)
    (folder / "a" / "003.png").unlink()

    out, err = run_command(linear_dense, path, str(folder), "--iterations", "2")

    assert out.startswith("miou 0.")
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [["class", "0"], ["class", "1"], ["class", "2"]]
    assert "note: 1 image without a target left out" in err


def test_json_is_complete(tmp_path: Path) -> None:
    """Machines get the metrics by name."""
    path, folder = scene(tmp_path)

    out, _ = run_command(linear_dense, path, str(folder), "--iterations", "2", "--json")

    assert set(json.loads(out)["metrics"]) == {"miou", "pixel_accuracy"}


def test_the_head_is_saved_and_not_replaced_unasked(tmp_path: Path) -> None:
    """`--save` writes a head that can be loaded, and a second run needs `--overwrite`."""
    path, folder = scene(tmp_path)
    words = [path, str(folder), "--iterations", "2", "--save", str(tmp_path / "head.safetensors")]
    run_command(linear_dense, *words)

    assert DenseHead.load(tmp_path / "head.safetensors").datasets == ("patch_features",)
    with pytest.raises(ConfigError, match="is already there"):
        run_command(linear_dense, *words)
    run_command(linear_dense, *words, "--overwrite")
