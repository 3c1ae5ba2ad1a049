"""The `linear-dense` command."""

from __future__ import annotations

import json
from pathlib import Path

from dino_extract.cli.linear_dense import linear_dense
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
