"""Runs that are killed anywhere, any number of times: nothing of them is lost, and nothing comes twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddsm_zoo.training.checkpoint import load_state
from tests.support.tiny_training import FULL, Crash, assert_same_outcome, at_step, crash, epochs_of, log_of, recipe, run

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {**FULL, "batch_size": 2, "epochs": 4, "save_every": 3, "validate_every": 2}

# Trains runs to their ends in processes that each go on with one and kill themselves at a random place: at a step, at
# the opening of a file to write, or at a renaming, so that saves are cut at their beginning, before and between the
# two names that change. Forked, since importing torch takes longer than everything else here.
KILL_AND_RESUME = """
import json, os, random, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)  # a fork has none of the threads of its parent, and would wait for them
from tests.support.tiny_training import recipe, run

folder, options, runs = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])


def go_on(out, place):
    places = 0

    def passed():
        nonlocal places
        places += 1
        if places == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, arguments):
        # of this run alone: the interpreter renames files of its own where modules are not compiled yet
        if event in ("os.rename", "open") and str(arguments[0]).startswith(str(out)) and arguments[1] != "r":
            passed()

    sys.addaudithook(audit)
    run(out, recipe(**options), resume=True, progress=lambda _: passed())


for seed in range(runs):
    random.seed(seed)
    kills, status = 0, None
    while status != 0:
        child = os.fork()
        if child == 0:
            go_on(folder / str(seed), random.randint(1, 40))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        kills += status != 0
    print(kills)
"""


def test_killed_again_and_again_they_end_as_if_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "whole", recipe(**OPTIONS))
    command = [sys.executable, "-c", KILL_AND_RESUME, str(tmp_path), json.dumps(OPTIONS), "3"]
    kills = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert len(kills) == 3
    assert min(map(int, kills)) >= 3
    for seed in range(3):
        killed = tmp_path / str(seed)
        assert_same_outcome(killed, tmp_path / "whole")
        assert [line["epoch"] for line in epochs_of(killed)] == [1, 2, 3, 4]
        resumed = [line["position"] for line in log_of(killed) if line["event"] == "resume"]
        assert any(position["step"] for position in resumed)
        left = sorted(path.relative_to(killed).as_posix() for path in killed.rglob("*") if path.is_file())
        assert left == [
            "best/model.safetensors", "last/before.pt", "last/model.safetensors", "last/state.pt", "log.jsonl"
        ]  # fmt: skip


def steps_done(out: Path) -> int:
    position = load_state(out / "last" / "state.pt")["position"]
    return int(position["epoch"] * 4 + position["step"])


@pytest.mark.parametrize(("save_every", "expected"), [(0, 4), (3, 6), (100, 4)])
def test_a_state_is_saved_after_every_so_many_steps_and_every_epoch(
    tmp_path: Path, save_every: int, expected: int
) -> None:
    """Killed after the seventh step, three into the second epoch of four steps each."""
    with pytest.raises(Crash):
        run(tmp_path, recipe(**{**OPTIONS, "save_every": save_every}), progress=at_step(7, crash))
    assert steps_done(tmp_path) == expected


def test_how_often_to_save_may_change_within_a_run(tmp_path: Path) -> None:
    run(tmp_path / "whole", recipe(**OPTIONS))
    with pytest.raises(Crash):
        run(tmp_path / "changed", recipe(**OPTIONS), progress=at_step(7, crash))
    run(tmp_path / "changed", recipe(**{**OPTIONS, "save_every": 1}), resume=True)
    assert_same_outcome(tmp_path / "changed", tmp_path / "whole")


# States are saved after the steps 3, 4 and 4 (before and after the validation), 6, 8, 8, 9, 12, 12, 15, 16 and 16.
@pytest.mark.parametrize(("step", "before"), [(6, (0, 4)), (7, (1, 0)), (10, (2, 0))])
def test_a_damaged_last_state_costs_the_steps_since_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int, before: tuple[int, int]
) -> None:
    run(tmp_path / "whole", recipe(**OPTIONS))
    with pytest.raises(Crash):
        run(tmp_path / "spoilt", recipe(**OPTIONS), progress=at_step(step, crash))
    state = tmp_path / "spoilt" / "last" / "state.pt"
    state.write_bytes(state.read_bytes()[:-2000])
    run(tmp_path / "spoilt", recipe(**OPTIONS), resume=True)
    assert [message for message in caplog.messages if f"{state} is damaged: going on from the state before" in message]
    (resumed,) = (line["position"] for line in log_of(tmp_path / "spoilt") if line["event"] == "resume")
    assert (resumed["epoch"], resumed["step"]) == before
    assert_same_outcome(tmp_path / "spoilt", tmp_path / "whole")
