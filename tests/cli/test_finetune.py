"""`finetune` as a user types it: what it says at its end leads on."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from dino_extract.finetune.presets import to_json
from tests.cli.conftest import Cli
from tests.finetune import runs


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
