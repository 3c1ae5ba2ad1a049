"""The benchmark for GPU machines runs from end to end, here on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"


def test_everything_is_measured_and_kept(tmp_path: Path) -> None:
    """With the smallest model on a CPU: rate and distance from float32, each place of decoding and resizing, tables and JSON."""
    small = ["--device", "cpu", "--models", "tiny", "--sizes", "28", "--images", "8", "--seconds", "0", "--forms", "eager"]

    ran = subprocess.run(
        [sys.executable, str(SCRIPT), *small, "--json", str(tmp_path / "report.json")], check=True, capture_output=True, text=True
    )

    report = json.loads((tmp_path / "report.json").read_text())
    (form,) = report["forms"]
    assert (form["model"], form["side"], form["form"]) == ("tiny", 28, "eager")
    assert form["images_per_s"] > 0
    assert form["least_cosine"] > 0.999
    assert form["largest_difference"] < 0.01
    places = [("host", "host"), ("host", "device"), ("device", "device")][: 3 if report["decoders"] else 2]
    assert [(row["decode"], row["resize"], row["images"]) for row in report["runs"]] == [(*place, 8) for place in places]
    assert all(row["device"] > 0 and row["largest_difference"] == 0 for row in report["decoders"])  # on a CPU both are libjpeg
    assert report["resize"][0]["images_per_s"] > 0
    assert f"| tiny | 28 | eager | {form['batch']} |" in ran.stdout
