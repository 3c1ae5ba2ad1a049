"""`doctor` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dino_extract.embedding.doctor import check_cache, check_disk, check_software
from dino_extract.embedding.self_test import check_parity
from tests.cli.conftest import Cli


def test_doctor_reports_the_machine_and_proves_parity(cli: Cli) -> None:
    """On a sound machine no finding is a problem, and float32 on this device equals the reference network."""
    ran = cli("doctor", "--json")

    findings = json.loads(ran.out)
    assert ran.code == 0
    assert {finding["name"] for finding in findings} >= {"python", "torch", "timm", "import timm", "cpu", "cache", "disk", "parity"}
    assert any(finding["name"] == "parity" and finding["found"].startswith("float32") for finding in findings)


def test_a_missing_package_is_a_problem_with_the_command_that_installs_it() -> None:
    """The finding names the package, and `pip install` is the advice."""
    *_, found = check_software(["no-such-package"])

    assert (found.name, found.verdict, found.advice) == ("no-such-package", "problem", "pip install no-such-package")


def test_a_full_disk_is_a_problem(tmp_path: Path) -> None:
    """Below the least free space the verdict is a problem, and above it is not."""
    assert check_disk(str(tmp_path), least_free=1 << 62).verdict == "problem"
    assert check_disk(str(tmp_path), least_free=0).verdict == "ok"


def test_a_cache_that_cannot_be_made_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache below a file is a problem, and the advice names the variable; one that can be made is not."""
    (tmp_path / "file").write_text("not a folder")

    monkeypatch.setenv("DINO_EXTRACT_CACHE", str(tmp_path / "file" / "inside"))
    bad = check_cache()
    monkeypatch.setenv("DINO_EXTRACT_CACHE", str(tmp_path / "new" / "cache"))
    good = check_cache()

    assert (bad.verdict, good.verdict) == ("problem", "ok")
    assert "DINO_EXTRACT_CACHE" in bad.advice


def test_numbers_that_differ_are_a_problem() -> None:
    """With a demand that no machine meets, the self-test fails and says not to trust the features."""
    findings = list(check_parity(least_cosine=1.1))

    assert {finding.verdict for finding in findings} == {"problem"}
    assert "do not trust features of this machine" in findings[0].advice


def test_a_problem_ends_with_1_and_the_findings_before_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finding is a line with its verdict; the advice stands below a problem."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DINO_EXTRACT_CACHE", str(tmp_path / "file" / "inside"))

    ran = cli("doctor")

    assert ran.code == 1
    assert any(line.startswith("problem cache") for line in ran.out.splitlines())
    assert "-> set DINO_EXTRACT_CACHE to a folder" in ran.out
