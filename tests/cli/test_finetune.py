"""`finetune` as a user types it: what it says at its end leads on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dino_extract.finetuning.presets import to_json
from tests.cli.conftest import Cli
from tests.finetuning import runs


def test_the_next_command_embeds_the_images_of_the_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line is a command that embeds the same images with the new weights into a file of its own."""
    monkeypatch.chdir(tmp_path)
    config = replace(runs.small_config(runs.make_pictures(Path("my photos"), 8), Path("run"), steps=1), sources=("my photos",))
    Path("asked.json").write_text(to_json(config))

    ran = cli("finetune", "--config", "asked.json")

    last = ran.err.splitlines()[-1]
    assert last == "next: dino-extract embed 'my photos' --weights run -o run.h5"
    assert cli(*shlex.split(last)[2:]).code == 0
    assert os.path.exists("run.h5")


def test_of_two_processes_one_speaks(tmp_path: Path) -> None:
    """Under torchrun the result is printed once, as one JSON object, and so is what to do next."""
    config = runs.small_config(runs.make_pictures(tmp_path / "photos", 8), tmp_path / "run", steps=1, monitor__images=0)
    (tmp_path / "asked.json").write_text(to_json(config))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [str(Path(sys.executable).with_name("dino-extract")), "finetune", "--config", str(tmp_path / "asked.json"), "--json"]

    ran = subprocess.run([*torchrun, *command], capture_output=True, text=True, timeout=300)

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["steps"] == 1
    assert ran.stderr.count("next: dino-extract embed") == 1
