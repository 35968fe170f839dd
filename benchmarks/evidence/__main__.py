"""Commands: folds, run, page. The runner calls `cell` for each training."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.matrix import Matrix
from benchmarks.evidence.page import write_page
from benchmarks.evidence.runner import Request, run_cell, run_matrix
from benchmarks.processes import ROOT

LOGS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        return _carry_out(options)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _carry_out(options: argparse.Namespace) -> int:
    if options.command == "page":
        _make_page(options.matrix, options.logs, options.page)
        return 0
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
    status = run_matrix(request, lambda line: print(line, flush=True))
    if options.page is not None:
        _make_page([request.path], request.logs, options.page)
    return status


def _make_page(paths: Sequence[Path], logs: Path, page: Path) -> None:
    matrices = [Matrix.load(path) for path in paths]
    missing = write_page([(matrix, logs / matrix.name) for matrix in matrices], page)
    print(f"wrote {page}, {missing} cells have no log yet" if missing else f"wrote {page}")


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
            command.add_argument("--page", type=Path, help="make this page at the end")
    page = commands.add_parser("page", help="write the tables of finished logs into a page")
    page.add_argument("matrix", type=Path, nargs="+", help="the matrix files, each with its markers in the page")
    page.add_argument("--logs", type=Path, default=LOGS, help="folder of the finished logs (docs/results)")
    page.add_argument("--page", type=Path, default=PAGE, help="docs/results.md unless given")
    return parser


if __name__ == "__main__":
    sys.exit(main())
