"""Commands: folds, run, page. The runner calls `cell` for each training."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.matrix import ROOT, Matrix
from benchmarks.evidence.runner import Request, run_cell, run_matrix

LOGS = ROOT / "docs" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        return _carry_out(options)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _carry_out(options: argparse.Namespace) -> int:
    request = Request(
        path=options.matrix,
        data=options.data,
        out=options.out,
        logs=options.logs,
        jobs=getattr(options, "jobs", 1),
        device=getattr(options, "device", None),
    )
    if options.command == "cell":
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        return run_cell(request, options.name, options.parent)
    if options.command == "folds":
        for data, fold in request.folds(Matrix.load(request.path)).values():
            print(f"{data}: {len(fold.train)} images to train on, {len(fold.val)} held out")
        return 0
    return run_matrix(request, lambda line: print(line, flush=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "folds": "make the folders of the folds",
        "run": "train and score every cell that has no log; started again, it goes on",
        "cell": "train and score one cell in this process",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("matrix", type=Path, help="a file such as benchmarks/evidence/quick.toml")
        if name == "cell":
            command.add_argument("name", help="ARM-FOLD-SEED")
            command.add_argument("--parent", type=int, help="process id of the runner")
        command.add_argument("--data", required=True, help="camvid:ROOT, folder:ROOT or scenes:N")
        command.add_argument("--out", type=Path, required=True, help="folder of folds and runs")
        command.add_argument("--logs", type=Path, default=LOGS, help="folder of the finished logs (docs/results)")
        if name == "run":
            command.add_argument("-j", "--jobs", type=int, default=1, help="cells at a time, each with one thread")
            command.add_argument("--device", help="cpu, cuda or cuda:N; a GPU where there is one unless given")
    return parser


if __name__ == "__main__":
    sys.exit(main())
