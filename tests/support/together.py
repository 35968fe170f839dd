"""Two processes that work together, as `accelerate launch` and torchrun start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROCESSES = 2


def run_together(arguments: Sequence[str], cwd: Path) -> list[str]:
    """Run Python with these arguments once for each rank; what each printed. All must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES), "OMP_NUM_THREADS": "1"}
    # without a GPU: one of them cannot be shared
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in map(str, range(PROCESSES))
    ]
    ended = [process.communicate(timeout=240) for process in processes]
    # All of them: the others fail too when one does, and say nothing of why.
    assert not any(process.returncode for process in processes), "\n".join(errors for _, errors in ended)
    return [output for output, _ in ended]
