"""The script for a GPU, tried on a CPU: steps run, one that fails costs no other, results are small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed import gpu, networks
from benchmarks.speed.gpu import Step, carry_out, check_size, plan
from tests.support.command_line import run_speed

SCRIPT = gpu.ROOT / "benchmarks" / "speed" / "gpu.sh"


@pytest.mark.usefixtures("small_models")
def test_the_steps_of_speed_run_in_tiny_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "COMPILER", "eager")
    steps = {step.name: step.arguments for step in plan(tmp_path, tmp_path, small=True)}
    assert list(steps) == ["op_fp32", "op_bf16", "models_fp32", "models_bf16", "models_bf16_compiled", "evidence"]
    for name in ("op_bf16", "models_bf16_compiled"):
        run_speed(*steps[name][2:])
    assert json.loads((tmp_path / "op_bf16.json").read_text())["rows"][0]["dtype"] == "bf16"
    compiled = json.loads((tmp_path / "models_bf16_compiled.json").read_text())["rows"][0]
    assert (compiled["dtype"], compiled["compiled"]) == ("bf16", "whole")


def test_the_script_trains_a_cell_of_the_evidence_matrix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(SCRIPT), "out", "--small", "--step", "evidence"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr + (out / "evidence.log").read_text()
    assert json.loads((out / "summary.json").read_text())[0]["outcome"] == "done"
    (log,) = (out / "evidence").rglob("*.jsonl")
    assert '"event": "validation"' in log.read_text() or "miou" in log.read_text()
    assert not list(out.rglob("*.safetensors"))


def test_a_step_that_fails_or_hangs_costs_no_other(tmp_path: Path) -> None:
    steps = [
        Step(name="fails", arguments=("-c", "print('why'); raise SystemExit(3)"), seconds=60),
        Step(name="hangs", arguments=("-c", "import time; time.sleep(60)"), seconds=1.5),
        Step(name="works", arguments=("-c", "print('fine')"), seconds=60),
    ]
    ends = carry_out(steps, tmp_path)
    outcomes = ["failed with status 3, see fails.log", "stopped after 2 s", "done"]
    assert [end["outcome"] for end in ends] == outcomes
    assert (tmp_path / "fails.log").read_text() == "why\n"
    assert json.loads((tmp_path / "summary.json").read_text()) == ends
    assert carry_out(steps, tmp_path, limit=0)[0]["outcome"] == "left out: no time"


def test_all_steps_fit_the_time_of_a_borrowed_machine() -> None:
    assert gpu.LIMIT < 600
    assert sum(step.seconds for step in plan(Path(), Path(), small=False)[:-1]) < gpu.LIMIT


def test_large_results_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "KEPT", 10)
    (tmp_path / "a").write_bytes(bytes(6))
    check_size(tmp_path)
    (tmp_path / "b").write_bytes(bytes(6))
    with pytest.raises(ValueError, match="expected at most"):
        check_size(tmp_path)
