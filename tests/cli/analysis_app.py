"""Analysis commands run as a user would type them, with stdout and stderr apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.testing import CliRunner


def run_command(command: Callable[..., Any], *arguments: str) -> tuple[str, str]:
    """What the command prints on stdout and on stderr; its errors pass through."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr
