"""The load under which something is measured: it is there, and it ends in every case."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.speed import load
from benchmarks.speed.load import LOADS, QUIET, loads, under

BUSY = [kind for kind in LOADS if kind != QUIET]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def children(parent: int) -> list[int]:
    """Processes that the parent has and that run, by what Linux says of them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        if int(words[1]) == parent and words[0] != "Z":
            found.append(int(path.parent.name))
    return found


def gone(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_quiet_is_first_and_starts_nothing() -> None:
    assert loads(busy=False) == [QUIET]
    assert loads(busy=True) == [QUIET, *BUSY]
    before = children(os.getpid())
    with under(QUIET):
        assert children(os.getpid()) == before


@linux
@pytest.mark.parametrize("kind", BUSY)
@pytest.mark.parametrize("fails", [False, True])
def test_a_process_is_busy_within_the_block(kind: str, fails: bool) -> None:
    before = set(children(os.getpid()))
    started: list[int] = []
    try:
        with under(kind):
            started = [pid for pid in children(os.getpid()) if pid not in before]
            (pid,) = started
            assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.nice(0) + (LOADS[kind] or 0))
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert len(started) == 1
    assert gone(started)


@linux
def test_the_load_is_bounded_in_time() -> None:
    before = set(children(os.getpid()))
    with under(BUSY[0], limit=0.2):
        assert gone_or_zombie([pid for pid in children(os.getpid()) if pid not in before])


def gone_or_zombie(pids: list[int]) -> bool:
    """True once none of them runs: the parent has yet to ask how they ended."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not set(pids) & set(children(os.getpid())):
            return True
        time.sleep(0.02)
    return False


KILLED = """
import os, runpy, signal, sys
load = runpy.run_path(sys.argv[1])  # alone, which is faster than with its package

with load["under"](list(load["LOADS"])[1]):
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    print(children, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@linux
def test_the_load_ends_with_a_benchmark_that_is_killed() -> None:
    ran = subprocess.run([sys.executable, "-c", KILLED, load.__file__], capture_output=True, text=True, check=False)
    pids = [int(word) for word in ran.stdout.split()]
    assert len(pids) == 1
    assert gone(pids)
