"""All that a GPU has to show, in one run of under ten minutes: `benchmarks/speed/gpu.sh` starts it.

Steps, each in a process of its own, so that one that fails or hangs costs no other: the kernels against float64 with
their time and memory, whole models in float32, in bfloat16 and compiled, and one cell of the evidence matrix. Each
leaves its figures in the folder as JSON; models, caches and run folders go elsewhere. Without a GPU the same steps run
on the CPU, which measures nothing of interest but tries the road (``--small``: in tiny sizes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, run_python

EVIDENCE = ROOT / "benchmarks" / "evidence"
LIMIT = 560.0  # seconds in all
KEPT = 64 * 2**20  # bytes of results


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, the most seconds it may take, and the file that it leaves."""

    name: str
    arguments: tuple[str, ...]
    seconds: float


def plan(out: Path, work: Path, *, small: bool, data: str | None = None, cell: str | None = None) -> list[Step]:
    """List the steps, in the order of what matters most. Without ``data`` a cell of rendered scenes is trained."""
    sides = ("8",) if small else ("64", "256", "512")
    size = "32" if small else "1024"
    repeats = "1" if small else "10"

    def op(precision: str) -> tuple[str, ...]:
        chosen = [word for side in sides for word in ("--side", side)]
        return ("--suite", "op", "--precision", precision, "--repeats", repeats, *chosen)

    def models(*options: str) -> tuple[str, ...]:
        return ("--suite", "models", "--size", size, "--repeats", repeats, *options)

    speed = {
        "op_fp32": (op("fp32"), 60.0),
        "op_bf16": (op("bf16"), 60.0),
        "models_fp32": (models(), 90.0),
        "models_bf16": (models("--precision", "bf16"), 90.0),
        "models_bf16_compiled": (models("--precision", "bf16", "--compile", "--batch", "1" if small else "8"), 200.0),
    }
    steps = [
        Step(
            name=name,
            arguments=("-m", "benchmarks.speed", *arguments, "--json", str(out / f"{name}.json")),
            seconds=seconds,
        )
        for name, (arguments, seconds) in speed.items()
    ]
    matrix, usual = ("quick.toml", "ddsm-north-0") if data is None else ("screening.toml", "ddsm-0001TP-0")
    places = ("--data", data or "scenes:3", "--out", str(work), "--logs", str(out / "evidence"))
    training = ("-m", "benchmarks.evidence", "cell", str(EVIDENCE / matrix), cell or usual, *places)
    return [*steps, Step(name="evidence", arguments=training, seconds=LIMIT)]


def carry_out(steps: Sequence[Step], out: Path, limit: float = LIMIT) -> list[dict[str, object]]:
    """Run the steps until the time is up, print a line for each, and keep their ends in ``summary.json``."""
    end = time.monotonic() + limit
    ends: list[dict[str, object]] = []
    for step in steps:
        left = min(step.seconds, end - time.monotonic())
        began = time.monotonic()
        outcome = "left out: no time" if left < 1 else _run(step, out / f"{step.name}.log", left)
        ends.append({"step": step.name, "outcome": outcome, "seconds": round(time.monotonic() - began, 1)})
        print(f"{step.name}: {outcome}, {ends[-1]['seconds']} s", flush=True)
        (out / "summary.json").write_text(json.dumps(ends, indent=1) + "\n", encoding="utf-8")
    return ends


def _run(step: Step, log: Path, seconds: float) -> str:
    with log.open("wb") as output:
        try:
            ran = run_python(
                step.arguments,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
    return "done" if ran.returncode == 0 else f"failed with status {ran.returncode}, see {log.name}"


def check_size(out: Path) -> None:
    """Raise ValueError if the results are larger than what is sent back from a borrowed machine."""
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > KEPT:
        raise ValueError(f"the results in {out} have {size / 2**20:.0f} MiB, expected at most {KEPT / 2**20:.0f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps. Returns 0 if all are done, else 1."""
    parser = argparse.ArgumentParser(prog="benchmarks/speed/gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument(
        "--data", help="camvid:ROOT to train a cell of the evidence matrix; rendered scenes unless given"
    )
    parser.add_argument("--cell", help="ARM-FOLD-SEED of benchmarks/evidence/screening.toml")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the road on a CPU")
    parser.add_argument("--step", action="append", help="this step only; repeatable")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        steps = plan(out, Path(work), small=options.small, data=options.data, cell=options.cell)
        if unknown := set(options.step or ()) - {step.name for step in steps}:
            parser.error(f"no step {', '.join(unknown)}, expected some of {', '.join(step.name for step in steps)}")
        ends = carry_out([step for step in steps if not options.step or step.name in options.step], out)
    check_size(out)
    return 0 if all(end["outcome"] == "done" for end in ends) else 1


if __name__ == "__main__":
    sys.exit(main())
