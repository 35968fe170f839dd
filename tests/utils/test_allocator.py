"""Page faults show whether freed memory went back to the system: a page that is new to the process costs one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Fewer faults than this: the memory was kept. New memory costs one for each page, and how many that is depends on the
# huge pages that the system has at that moment
FEW = 20

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")

PROGRAM = """
import resource
import sys
import numpy as np
from ddsm_zoo.utils.allocator import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first, second = np.ones(2**22), np.ones(2**23)
    del first, second
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return int(subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout)


def test_freed_memory_is_used_again() -> None:
    assert faults("keep") < FEW < faults()


def test_settings_of_the_environment_stay() -> None:
    assert faults("keep", MALLOC_ARENA_MAX="4") > FEW
