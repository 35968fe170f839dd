"""The shell command as tests call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from ddsm_zoo.cli import app


def run_command(*arguments: str | Path, fails: int = 0) -> Any:
    """Call ``ddsm-zoo ARGUMENTS``; what ``fails`` must be so many lines that begin with "error:", and status 2."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == (2 if fails else 0), result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == fails, result.output
    assert "Traceback" not in result.output
    return result
