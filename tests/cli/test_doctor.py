"""`doctor` as a user meets it."""

from __future__ import annotations

import json

from tests.cli.conftest import Cli


def test_doctor_reports_the_machine_and_proves_parity(cli: Cli) -> None:
    """On a sound machine no finding is a problem, and fp32 on this device equals the reference network."""
    ran = cli("doctor", "--json")

    findings = json.loads(ran.out)
    assert ran.code == 0
    assert {finding["name"] for finding in findings} >= {"python", "torch", "timm", "import timm", "cpu", "cache", "disk", "parity"}
    assert any(finding["name"] == "parity" and finding["found"].startswith("float32") for finding in findings)
