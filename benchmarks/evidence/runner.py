"""Trains the cells of a matrix, several at a time, each in a process of its own."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.arms import check_arm
from benchmarks.evidence.cell import BUSY, INTERRUPTED, OtherRunError, Place, describe, is_finished, train_cell
from benchmarks.evidence.folds import Fold, never_held_out, open_folds
from benchmarks.evidence.matrix import Cell, Matrix
from benchmarks.processes import start_python
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.utils.signals import interruptible

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A matrix on one data set, and where its files go."""

    path: Path  # of the matrix
    data: str
    out: Path  # folds, run folders
    logs: Path  # finished logs
    jobs: int = 1
    device: str | None = None  # cpu, cuda:N, or whatever there is

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"jobs is {self.jobs}, expected at least 1")
        kind, _, number = (self.device or "").partition(":")
        if self.device not in (None, "cpu", "cuda") and not (kind == "cuda" and number.isdigit()):
            raise ConfigError(f"device is {self.device!r}, expected cpu, cuda or cuda:N")

    def place(self, matrix: Matrix, cell: Cell) -> Place:
        return Place(
            folder=self.out / matrix.name / "cells" / cell.name, log=self.logs / matrix.name / f"{cell.name}.jsonl"
        )

    def folds(self, matrix: Matrix, refuse: Callable[[str], None] | None = None) -> Mapping[str, tuple[str, Fold]]:
        return open_folds(self.data, matrix.folds, self.out / matrix.name, refuse)


def run_matrix(request: Request, say: Callable[[str], None]) -> int:
    """Train every cell without a log. A cell that fails is one line, and the rest goes on.

    Returns:
        The exit status: 0 when all logs are there, 1 when some are missing, 130 after an interruption.

    Raises:
        ValueError: the matrix or the data cannot be used; nothing was trained.
    """
    matrix = Matrix.load(request.path)
    for name, arm in matrix.arms.items():
        check_arm(name, arm)
    refused: list[str] = []
    folds = request.folds(matrix, lambda reason: refused.append(f"{matrix.name}: refused: {reason}"))
    if always := never_held_out(fold for _, fold in folds.values()):
        say(f"{matrix.name}: all folds train on {len(always)} images and none holds them out, first {always[0]}")
    cells = [cell for cell in matrix.cells() if cell.fold in folds]
    states = {cell: _state(request.place(matrix, cell), describe(matrix, cell, folds[cell.fold][1])) for cell in cells}
    refused_cells = [cell for cell, state in states.items() if isinstance(state, OtherRunError)]
    refused += [f"{cell}: refused: {states[cell]}" for cell in refused_cells]
    for line in refused:
        say(line)
    waiting = [cell for cell, state in states.items() if state is False]
    done = len(cells) - len(waiting) - len(refused_cells)
    say(f"{matrix.name}: {done} of {len(cells)} cells are finished")
    with interruptible() as interrupted:
        pool = _Pool(request, matrix, say, done=done, total=len(cells))
        pool.work(waiting, interrupted.is_set)
    if interrupted.is_set():
        say("interrupted: the same command goes on where the states were saved")
        return 130
    return 1 if refused or pool.missing else 0


def run_cell(request: Request, name: str, parent: int | None) -> int:
    """Train the cell of that name in this process. Returns the exit status."""
    matrix = Matrix.load(request.path)
    cell = next((each for each in matrix.cells() if each.name == name), None)
    if cell is None:
        raise LookupError(f"{request.path} has no cell {name}, expected one such as {matrix.cells()[0].name}")
    reasons: list[str] = []
    folds = request.folds(matrix, reasons.append)
    if cell.fold not in folds:
        raise LookupError(f"{name} has no fold to train on: {reasons[0]}")
    data, fold = folds[cell.fold]
    return train_cell(matrix, cell, data, fold, request.place(matrix, cell), parent)


def _state(place: Place, wanted: Mapping[str, Any]) -> bool | OtherRunError:
    """Whether the cell is finished, or the reason that it cannot be trained here."""
    try:
        return is_finished(place, wanted)
    except OtherRunError as error:
        return error


class _Pool:
    """Up to ``jobs`` processes at a time."""

    def __init__(self, request: Request, matrix: Matrix, say: Callable[[str], None], *, done: int, total: int) -> None:
        self.request, self.matrix, self.say = request, matrix, say
        self.done, self.total = done, total
        self.trained = self.missing = 0
        self.began = time.monotonic()
        self.running: dict[Cell, subprocess.Popen[bytes]] = {}

    def work(self, waiting: list[Cell], interrupted: Callable[[], bool]) -> None:
        """Train the cells in their order until all are done. Once ``interrupted``, save the running ones and stop."""
        waiting = list(waiting)
        while self.running or (waiting and not interrupted()):
            while waiting and len(self.running) < self.request.jobs and not interrupted():
                cell = waiting.pop(0)
                self.running[cell] = self._start(cell)
            if interrupted():
                waiting = []
                for process in self.running.values():
                    process.terminate()
            time.sleep(1.0 if interrupted() else 0.1)
            for cell, process in list(self.running.items()):
                if process.poll() is not None:
                    del self.running[cell]
                    self._finish(cell, process.returncode, len(waiting) + len(self.running))

    def _start(self, cell: Cell) -> subprocess.Popen[bytes]:
        request, place = self.request, self.request.place(self.matrix, cell)
        words = ["-m", "benchmarks.evidence", "cell", str(request.path), cell.name]
        words += ["--data", request.data, "--out", str(request.out), "--logs", str(request.logs)]
        words += ["--parent", str(os.getpid())]
        place.output.parent.mkdir(parents=True, exist_ok=True)
        with place.output.open("wb") as output:
            return start_python(words, changes=self._environment(), stdout=output, stderr=output)

    def _environment(self) -> dict[str, str]:
        environment = dict.fromkeys(THREADS, "1")
        kind, _, number = (self.request.device or "").partition(":")
        if kind == "cpu" or number:
            environment["CUDA_VISIBLE_DEVICES"] = number
        return environment

    def _finish(self, cell: Cell, status: int, left: int) -> None:
        place = self.request.place(self.matrix, cell)
        if status == 0:
            self.done += 1
            self.trained += 1
            self.say(f"{self.done} of {self.total}: {cell}: {_summary(place.log)}; {self._clock(left)}")
            return
        self.missing += 1
        if status == BUSY:
            self.say(f"{cell}: left to the other process that is training it")
        elif status == INTERRUPTED:
            self.say(f"{cell}: interrupted, its state is saved")
        elif status < 0:
            self.say(f"{cell}: killed by signal {-status}; its state is kept, the same command goes on with it")
        else:
            lines = place.output.read_text(encoding="utf-8", errors="replace").split("\n")
            reason = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            self.say(f"{cell}: failed with status {status}: {reason[:300]} (all of it: {place.output})")

    def _clock(self, left: int) -> str:
        elapsed = time.monotonic() - self.began
        estimate = elapsed / self.trained * left
        return f"elapsed {_duration(elapsed)}, about {_duration(estimate)} left"


def _summary(log: Path) -> str:
    score = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    smallest = next(iter(score["boundary_f"].values()))
    return f"mIoU {100 * score['miou']:.2f}, F at the smallest radius {100 * smallest:.2f}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
