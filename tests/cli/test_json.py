"""`--json` prints exactly the keys that docs/json.md explains."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dino_extract.analysis.curate import Curated
from dino_extract.analysis.dedup import Calibration, DedupResult, Leak
from dino_extract.analysis.export.exporting import ExportResult
from dino_extract.analysis.probes.knn import KnnResult
from dino_extract.analysis.probes.linear import LinearResult
from dino_extract.analysis.probes.linear_dense import DenseResult
from dino_extract.analysis.probes.probe import Classified
from dino_extract.analysis.search import RetrievalScore, SearchResult
from dino_extract.embedding.benchmark import BenchmarkReport
from dino_extract.finetuning.loop import FinetuneResult
from dino_extract.pictures.report import ReportResult
from tests.cli.conftest import Cli
from tests.sample_images import save_pictures

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
FAST = ["--model", "tiny", "--random-weights", "0", "--size", "28", "--workers", "1", "--dtype", "float32", "-q"]
NETWORK = ["--model", "tiny", "--random-weights", "0", "--size", "28", "-q"]


def documented(command: str) -> set[str]:
    """The keys that the page lists for a command."""
    (section,) = re.findall(rf"^## {re.escape(command)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.S | re.M)
    return set(re.findall(r"^\| `(\w+)` \|", section, re.M))


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("benchmark", BenchmarkReport),
        ("finetune", FinetuneResult),
        ("search", SearchResult),
        ("search --score", RetrievalScore),
        ("knn", KnnResult),
        ("linear", LinearResult),
        ("classify", Classified),
        ("linear-dense", DenseResult),
        ("dedup", DedupResult),
        ("dedup --against", Leak),
        ("dedup --calibrate", Calibration),
        ("curate", Curated),
        ("report", ReportResult),
        ("export", ExportResult),
    ],
)
def test_the_page_has_the_fields_of_each_result(command: str, result: Any) -> None:
    """The keys of a result are the fields of its class, with what the class adds and without what it leaves out."""
    names = {field.name for field in fields(result)} - {*getattr(result, "json_without", ())}

    assert documented(command) == names | {*getattr(result, "json_with", ())}


def test_the_page_has_the_keys_that_commands_print(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cheap command is run, and its keys are those of the page."""
    save_pictures(tmp_path / "photos", range(4))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff not more")
    monkeypatch.chdir(tmp_path)
    printed = {}

    for command, words in {
        "embed --dry-run": ["embed", "photos", "--dry-run", *FAST],
        "embed": ["embed", "photos", *FAST],
        "join": ["join", "photos.h5", "-o", "joined.h5"],
        "info": ["info", "photos.h5"],
        "info --failures": ["info", "photos.h5", "--failures"],
        "verify": ["verify", "photos.h5", "--rows", "1"],
        "weights list": ["weights", "list"],
        "weights verify": ["weights", "verify", "tiny"],
        "doctor": ["doctor"],
        "embed with patches": ["embed", "photos", "-o", "patches.h5", "--tokens", "cls,patch", *FAST],
        "outliers": ["outliers", "patches.h5"],
        "cluster": ["cluster", "patches.h5", "2"],
        "curate": ["curate", "patches.h5", "--images", "2"],
        "pca": ["pca", "patches.h5"],
        "match": ["match", "photos/even/0000.png", "photos/even/0002.png", "--keep-background", *NETWORK],
        "attention": ["attention", "photos/even/0000.png", *NETWORK],
        "report": ["report", "patches.h5"],
        "export": ["export", "patches.h5", "--to", "csv"],
    }.items():
        result = json.loads(cli(*words, "--json").out)
        printed[command] = set(result[0] if isinstance(result, list) else result)

    assert printed.pop("embed with patches") == documented("embed")
    assert printed == {command: documented(command) for command in printed}
