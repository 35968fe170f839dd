"""The shell command as tests call it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer import Typer
from typer.testing import CliRunner

from benchmarks.speed import __main__ as speed
from ddsm_zoo.cli import app


def run_speed(*arguments: str | Path, fails: int = 0) -> Any:
    """Call ``python -m benchmarks.speed ARGUMENTS``, held to what `run_command` holds ``ddsm-zoo`` to."""
    return _run(speed.app, arguments, fails)


def run_command(*arguments: str | Path, fails: int = 0) -> Any:
    """Call ``ddsm-zoo ARGUMENTS``; what ``fails`` must be so many lines that begin with "error:", and status 2."""
    return _run(app, arguments, fails)


def _run(command: Typer, arguments: Sequence[str | Path], fails: int) -> Any:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == (2 if fails else 0), result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == fails, result.output
    assert "Traceback" not in result.output
    return result
