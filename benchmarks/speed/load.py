"""Load on the machine while something is measured: a process that keeps one core busy."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.processes import start_python

QUIET = "quiet"
# name -> niceness of the process that keeps a core busy, None for none
LOADS: dict[str, int | None] = {QUIET: None, "one core busy, nice 19": 19, "one core busy, nice 0": 0}
LIMIT = 3600.0

_SPIN = """
import os, sys, time
nice, limit = int(sys.argv[1]), float(sys.argv[2])
if hasattr(os, "nice"):
    os.nice(nice)
parent, end = os.getppid(), time.monotonic() + limit
print("busy", flush=True)
while time.monotonic() < end and os.getppid() == parent:
    for _ in range(100000):
        pass
"""


def loads(busy: bool) -> list[str]:
    """The loads to measure under: none, or each in turn."""
    return list(LOADS) if busy else [QUIET]


@contextmanager
def under(load: str, limit: float = LIMIT) -> Iterator[None]:
    """Keep a core busy within the block, as `LOADS` says.

    The process ends with the block, with its parent or after ``limit`` seconds, whichever comes first.
    """
    nice = LOADS[load]
    if nice is None:
        yield
        return
    with start_python(["-c", _SPIN, str(nice), str(limit)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it runs
            yield
        finally:
            process.kill()
            process.wait()
