"""Lines, tables and JSON where there is no terminal, and where file names or encodings are unusual."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG = "x" * 150
PRINT = f"""
import logging
import ddsm_zoo.cli.console as console
from ddsm_zoo.cli.app import configure
configure()
logging.getLogger("ddsm_zoo.test").warning("a log line of %s", "{LONG} [bold]words")
console.print_table("title", ("class", "value"), [["{LONG}", "{LONG}"], ["b", "2"]])
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, env=plain | environment, check=True)


def test_nothing_wraps_or_is_cut_where_there_is_no_terminal() -> None:
    done = run(PRINT)
    assert done.stderr.decode().splitlines() == [f"a log line of {LONG} [bold]words"]
    lines = done.stdout.decode().splitlines()
    assert sum(line.count(LONG) for line in lines) == 2
    assert len(lines) == 7
    assert max(map(len, run(PRINT, COLUMNS="100").stdout.decode().splitlines())) == 100


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_any_name_is_printed_and_written_as_json(tmp_path: Path, encoding: str) -> None:
    names = ["café", "道路", os.fsdecode(b"caf\xe9.png")]
    code = f"""
import ddsm_zoo.cli.console as console
from ddsm_zoo.cli.app import configure
configure()
console.report({names!a}, "-")
console.report({names!a}, {str(tmp_path / "names.json")!r})
console.print_notes({names!a})
console.print_error(ValueError({names!a}[2]))
"""
    done = run(code, PYTHONIOENCODING=encoding)
    assert json.loads(done.stdout.decode(encoding)) == names
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == names
    last = done.stderr.decode(encoding).splitlines()[-1]
    assert last == "error: caf\\udce9.png"
