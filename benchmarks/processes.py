"""This interpreter in processes of its own, where this checkout can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def start_python(words: Sequence[str], *, changes: Mapping[str, str] = {}, **options: Any) -> subprocess.Popen[Any]:
    """Start it with these words after its name, and ``changes`` to its environment; the rest is as for Popen."""
    environment = _environment(changes)
    # S603 warns of words from strangers: all callers write their own, and no shell reads them
    return subprocess.Popen([sys.executable, *words], env=environment, **options)  # noqa: S603


def run_python(words: Sequence[str], *, check: bool, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run it with these words to its end; the rest is as for `subprocess.run`."""
    return subprocess.run([sys.executable, *words], env=_environment({}), check=check, **options)  # noqa: S603 - as above


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **changes, "PYTHONPATH": os.pathsep.join(paths)}
