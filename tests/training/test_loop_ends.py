"""Runs that end before their time, or are asked to go on: what is kept, resumed and refused."""

from __future__ import annotations

import errno
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ddsm_zoo.training.checkpoint import load_state, save_state
from ddsm_zoo.training.loop import ProgressEvent, TrainingDiverged, fit
from ddsm_zoo.utils.files import CheckpointError, OutputError
from tests.support.errors import raises
from tests.support.tiny_training import (
    FULL,
    Blobs,
    Crash,
    Linear,
    Net,
    assert_same_outcome,
    at_step,
    crash,
    fresh,
    interrupt,
    recipe,
    run,
)


@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_run_that_died_goes_on_as_if_it_had_not(tmp_path: Path, options: dict[str, Any], step: int) -> None:
    run(tmp_path / "whole", recipe(**options))
    with pytest.raises(Crash):
        run(tmp_path / "died", recipe(**options), progress=at_step(step, crash))
    run(tmp_path / "died", recipe(**options), resume=True)
    assert_same_outcome(tmp_path / "died", tmp_path / "whole")


@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_notice_to_leave_save_the_step_in_hand(
    tmp_path: Path, options: dict[str, Any], step: int, number: signal.Signals
) -> None:
    run(tmp_path / "whole", recipe(**options))
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    # The signal comes while step + 1 is in hand.
    action = at_step(step, lambda: signal.raise_signal(number))
    summary = run(tmp_path / "left", recipe(**options), progress=action)
    assert summary["interrupted"]
    assert {each: signal.getsignal(each) for each in handlers} == handlers
    steps_per_epoch = 2 if options else 3
    position = load_state(tmp_path / "left" / "last" / "state.pt")["position"]
    assert position["epoch"] * steps_per_epoch + position["step"] == step + 1
    summary = run(tmp_path / "left", recipe(**options), resume=True)
    assert not summary["interrupted"]
    assert_same_outcome(tmp_path / "left", tmp_path / "whole")


def test_a_second_ctrl_c_is_not_held_up(tmp_path: Path) -> None:
    def watch(_: ProgressEvent) -> None:
        interrupt()
        interrupt()

    handler = signal.default_int_handler  # a shell that runs the tests in the background ignores SIGINT
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, recipe(), progress=watch)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_outside_the_main_thread(tmp_path: Path) -> None:
    summaries: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: summaries.append(run(tmp_path, recipe(epochs=1))))
    thread.start()
    thread.join()
    assert summaries[0]["epochs"] == 1


def test_a_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    first = run(tmp_path, recipe())
    before = (tmp_path / "last" / "state.pt").read_bytes()
    assert run(tmp_path, recipe(), resume=True) == first
    assert (tmp_path / "last" / "state.pt").read_bytes() == before


def test_resuming_what_never_began_begins_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "plain", recipe())
    assert "no state" not in caplog.text
    run(tmp_path / "resumed", recipe(), resume=True)
    assert f"{tmp_path / 'resumed'} holds no state to resume: a new run begins" in caplog.text
    assert_same_outcome(tmp_path / "resumed", tmp_path / "plain")


def test_a_run_is_not_overwritten_nor_continued_with_something_else(tmp_path: Path) -> None:
    run(tmp_path, recipe(epochs=2))
    before = (tmp_path / "last" / "state.pt").read_bytes()
    with raises(CheckpointError, kind="run-exists", path=tmp_path):
        run(tmp_path, recipe(epochs=2))
    with raises(CheckpointError, kind="other-recipe", got=["lr"]):
        run(tmp_path, recipe(epochs=3, lr=0.2), resume=True)
    with raises(CheckpointError, kind="other-data", got=15, expected=14):
        run(tmp_path, recipe(epochs=2), count=15, resume=True)
    with raises(CheckpointError, kind="weights-mismatch", path="last/state.pt"):
        run(tmp_path, recipe(epochs=2), fresh(Linear), resume=True)
    assert (tmp_path / "last" / "state.pt").read_bytes() == before
    for state in ("state.pt", "before.pt"):
        (tmp_path / "last" / state).write_bytes(before[:-100])
    with raises(CheckpointError, kind="damaged-state"):
        run(tmp_path, recipe(epochs=2), resume=True)


NAMES = {"class names": ["soil", "crop"], "training images": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "got", "shown"),
    [
        ("class names", ["crop", "soil"], ("'soil'", "'crop'")),
        ("training images", ["a", "b", "c"], ("2", "3")),
    ],
)
def test_a_run_is_known_by_names_not_by_their_number(
    tmp_path: Path, name: str, got: list[str], shown: tuple[str, str]
) -> None:
    run(tmp_path, recipe(epochs=1), identity=NAMES)
    before = (tmp_path / "last" / "state.pt").read_bytes()
    facts = {"kind": "other-data", "path": "last/state.pt", "name": name, "got": got, "expected": NAMES[name]}
    with raises(CheckpointError, **facts) as error:
        run(tmp_path, recipe(epochs=2), resume=True, identity={**NAMES, name: got})
    assert all(value in str(error.value).partition(name)[2] for value in shown)
    assert (tmp_path / "last" / "state.pt").read_bytes() == before
    assert run(tmp_path, recipe(epochs=2), resume=True, identity=NAMES)["epochs"] == 2


@pytest.mark.parametrize("part", ["recipe", "images", "position", "model", "optimizer"])
def test_a_state_that_another_program_wrote_is_one_line(tmp_path: Path, part: str) -> None:
    run(tmp_path, recipe(epochs=1))
    path = tmp_path / "last" / "state.pt"
    state = load_state(path)
    for spoilt in ({key: state[key] for key in state if key != part}, {**state, part: {"lost": 1}}):
        save_state(path, spoilt)
        with raises(CheckpointError, path="last/state.pt"):
            run(tmp_path, recipe(epochs=2), resume=True)


class Crowded(Net):
    """There is too little memory to validate on whole images from the second epoch on."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and crowded:
            raise MemoryError
        return super().forward(x)


crowded: list[bool] = []


def test_a_validation_without_memory_costs_no_step(tmp_path: Path) -> None:
    try:
        with pytest.raises(MemoryError):
            run(tmp_path / "out", recipe(), fresh(Crowded), progress=at_step(5, lambda: crowded.append(True)))
    finally:
        crowded.clear()
    assert load_state(tmp_path / "out" / "last" / "state.pt")["position"]["step"] == 3
    run(tmp_path / "out", recipe(), resume=True)
    run(tmp_path / "whole", recipe())
    assert_same_outcome(tmp_path / "out", tmp_path / "whole")


class Poisoned(Blobs):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = super().__getitem__(index)
        return image * float("nan") if self.epoch == 1 else image, mask


def test_a_diverged_run_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with raises(TrainingDiverged, kind="diverged", name="the loss") as error:
        fit(fresh(), recipe(), Poisoned(8), Blobs(2), tmp_path)
    assert "nan in epoch 2, step 1" in str(error.value)
    assert load_state(tmp_path / "last" / "state.pt")["position"]["epoch"] == 1
    assert all(
        torch.isfinite(t).all() for t in safetensors.torch.load_file(tmp_path / "last/model.safetensors").values()
    )


class SpoiltByItsGradient(Linear):
    """The loss is finite and its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift.abs().sqrt()


def test_weights_spoilt_by_the_last_step_are_not_saved(tmp_path: Path) -> None:
    with raises(TrainingDiverged, kind="diverged"):
        run(tmp_path, recipe(batch_size=14), fresh(SpoiltByItsGradient))
    assert not (tmp_path / "last").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files, which Windows cannot")
def test_a_full_disk_keeps_the_old_state(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = at_step(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1])))
    try:
        with raises(OutputError, path="state.pt", errno=errno.EFBIG):
            run(tmp_path / "full", recipe(), progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run(tmp_path / "full", recipe(), resume=True)
    run(tmp_path / "whole", recipe())
    assert_same_outcome(tmp_path / "full", tmp_path / "whole")
