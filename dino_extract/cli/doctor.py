"""`doctor`: what this machine is, what is wrong with it, and whether the numbers come out right here."""

from __future__ import annotations

import typer

import dino_extract as dx
from dino_extract.cli.options import AsJson, print_json
from dino_extract.errors import ExitCode

EXAMPLES = """Examples:
  dino-extract doctor"""


def doctor(as_json: AsJson = False) -> None:
    """Check Python, packages, CPU, GPU, caches and disk, and run a self-test of the numbers.

    Paste the output into a bug report. The exit code is 1 if something is wrong.
    """
    findings = []
    for finding in dx.doctor():
        findings.append(finding)
        if not as_json:
            advice = f"\n{'':22}-> {finding.advice}" if finding.advice else ""
            print(f"{finding.verdict:8}{finding.name:14}{finding.found}{advice}", flush=True)
    if as_json:
        print_json(findings)
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(ExitCode.ERROR)
