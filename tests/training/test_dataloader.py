"""Loading processes that are killed, or find too little memory to share."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ddsm_zoo.training.checkpoint import load_state
from ddsm_zoo.training.dataloader import WorkerError, load
from ddsm_zoo.training.loop import fit
from tests.support.errors import raises
from tests.support.tiny_training import Blobs, assert_same_outcome, fresh, recipe, run

Usage = namedtuple("Usage", "total used free")


class Killed(Blobs):
    """The system kills the process that reads the last images of the second epoch, as it does when memory is out."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.epoch == 1 and index == 3 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_loading_process_is_one_line_and_costs_no_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    with raises(WorkerError, kind="worker-killed"):
        fit(fresh(), recipe(workers=1), Killed(14), Blobs(5), tmp_path / "killed")
    assert signal.getsignal(signal.SIGCHLD) is handler
    position = load_state(tmp_path / "killed" / "last" / "state.pt")["position"]
    assert position["epoch"] == 1
    # It dies while it reads the batch after the one that another step has taken
    assert (f"the state after step {3 + position['step']} is saved" in caplog.text) is (position["step"] > 0)
    run(tmp_path / "killed", recipe(), resume=True)
    run(tmp_path / "whole", recipe())
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


class Large(Blobs):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(3, 256, 256), torch.zeros(256, 256, dtype=torch.int64)


@pytest.mark.parametrize("order", [{"batch_sampler": [[0, 1], [2, 3]]}, {"batch_size": None, "sampler": range(4)}])
def test_shared_memory_that_is_too_small_for_a_batch_is_one_line(order: dict[str, object]) -> None:
    """A limit on the size of files holds for shared memory too, and fails as a full one does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with raises(WorkerError, kind="shared-memory"):
            list(load(Large(4), workers=1, seed=0, pin_memory=False, **order))
        assert len(list(load(Large(4), workers=0, seed=0, pin_memory=False, **order))) > 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_shared_memory_that_is_nearly_full_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 KiB hold the queues of no loading process."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**16, 0, 2**16))
    with raises(WorkerError, kind="shared-memory", got=2**16):
        run(tmp_path, recipe(workers=1))
    assert not (tmp_path / "last").exists()
    assert run(tmp_path, recipe(workers=0, epochs=1))["epochs"] == 1


ENDS = """
import sys
from pathlib import Path
from tests.support.tiny_training import Blobs, fit, fresh, recipe

class Spoilt(Blobs):
    def __getitem__(self, index):
        if index == 9:
            raise ValueError("a damaged image")
        return super().__getitem__(index)

def stop(event):
    if event.phase == sys.argv[2]:
        raise KeyError("a bug")

from ddsm_zoo.training.loop import Hooks
samples = Spoilt(10) if sys.argv[2] == "read" else Blobs(10)
fit(fresh(), recipe(workers=2, batch_size=2), samples, Blobs(5), Path(sys.argv[1]), hooks=Hooks(progress=stop))
"""


@pytest.mark.parametrize("phase", ["read", "validate"])
def test_a_process_that_fails_with_loading_processes_ends(tmp_path: Path, phase: str) -> None:
    """They ignore the signal by which Python would end them at its exit, and it would wait for them forever."""
    command = [sys.executable, "-c", ENDS, str(tmp_path / "run"), phase]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == ("ValueError: a damaged image" if phase == "read" else "KeyError: 'a bug'")


def test_processes_that_cannot_start_are_one_line() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 2, limits[1]))
    try:
        with raises(WorkerError, kind="worker"):
            list(load(Blobs(4), workers=1, seed=0, pin_memory=False, batch_sampler=[[0, 1]]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
