"""Files of a run: what is in them, what survives, and what is refused."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddsm_zoo.training.checkpoint import (
    CheckpointError,
    RunLog,
    has_state,
    load_last_state,
    load_state,
    promote_state,
    save_last_state,
    save_state,
    save_weights,
)
from ddsm_zoo.utils.files import OutputError
from tests.support.errors import raises
from tests.support.full_disk import full_disk

STATE = {"model": {"w": torch.arange(5000.0)}, "position": {"epoch": 3, "miou": float("nan")}, "average": None}


def test_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "last" / "state.pt"
    save_state(path, STATE)
    state = load_state(path)
    torch.testing.assert_close(state["model"]["w"], torch.arange(5000.0), rtol=0, atol=0)
    assert state["position"]["epoch"] == 3
    assert state["average"] is None
    assert list(path.parent.iterdir()) == [path]


def test_weights_are_plain_float32_without_the_auxiliary_head(tmp_path: Path) -> None:
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    save_weights(
        tmp_path / "model.safetensors",
        {
            "kernel": channels_last,
            "half": torch.tensor([1.5], dtype=torch.bfloat16),
            "count": torch.tensor(7),
            "auxiliary.weight": torch.ones(3),
        },
    )
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert set(loaded) == {"kernel", "half", "count"}
    assert torch.equal(loaded["kernel"], channels_last)
    assert loaded["kernel"].is_contiguous()
    assert loaded["half"].dtype == torch.float32
    assert loaded["count"].dtype == torch.int64


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files, which Windows cannot")
def test_a_full_disk_keeps_the_old_files(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"model": {}, "old": True})
    save_weights(tmp_path / "model.safetensors", {"old": torch.ones(1)})
    with full_disk(), raises(OutputError, path="state.pt"):
        save_state(tmp_path / "state.pt", STATE)
    with full_disk(), raises(OutputError, path="model.safetensors"):
        save_weights(tmp_path / "model.safetensors", {"w": torch.arange(5000.0)})
    assert load_state(tmp_path / "state.pt")["old"]
    assert set(safetensors.torch.load_file(tmp_path / "model.safetensors")) == {"old"}
    assert len(list(tmp_path.iterdir())) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(cut=st.floats(0, 0.999))
def test_a_truncated_state_is_refused(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with raises(CheckpointError, kind="damaged-state", path="state.pt"):
        load_state(path)


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor(1234.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with raises(CheckpointError, kind="damaged-state", path="state.pt"):
        load_state(path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran code from a file')",)


def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for content in ({"format": 1, "model": Bomb()}, {"format": 0}, [1, 2], {"weight": torch.ones(1)}):
        torch.save(content, path)
        with raises(CheckpointError, kind="damaged-state", path="state.pt"):
            load_state(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with raises(CheckpointError, kind="damaged-state", path="state.pt"):
        load_state(path)
    with raises(FileNotFoundError, kind="missing-file", path="absent.pt"):
        load_state(tmp_path / "absent.pt")


def at(epoch: int) -> dict[str, Any]:
    return {"model": {"w": torch.arange(5000.0)}, "position": {"epoch": epoch, "step": 7}}


def epoch_of(out: Path) -> int:
    epoch: int = load_last_state(out)[1]["position"]["epoch"]
    return epoch


def test_a_run_has_its_last_two_states(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not has_state(tmp_path)
    for epoch in (1, 2, 3):
        save_last_state(tmp_path, at(epoch))
        assert has_state(tmp_path)
        assert epoch_of(tmp_path) == epoch
    assert not caplog.messages
    assert [load_state(path)["position"]["epoch"] for path in sorted((tmp_path / "last").iterdir())] == [2, 3]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def something_else(path: Path) -> None:
    torch.save([1, 2], path)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [torn, emptied, something_else, gone])
def test_the_state_before_takes_over_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    for epoch in (1, 2):
        save_last_state(tmp_path, at(epoch))
    last = tmp_path / "last" / "state.pt"
    spoil(last)
    path, state = load_last_state(tmp_path)
    assert state["position"]["epoch"] == 1
    assert caplog.messages == [
        f"{last} is {'missing' if spoil is gone else 'damaged'}: "
        "going on from the state before it, after epoch 1 and step 7 of the next"
    ]
    # What is damaged is never kept in the place of what is sound.
    promote_state(tmp_path, path)
    assert load_state(last)["position"]["epoch"] == 1
    save_last_state(tmp_path, at(2))
    torn(last)
    assert epoch_of(tmp_path) == 1


def test_two_damaged_states_are_one_line(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_last_state(tmp_path, at(epoch))
        torn(tmp_path / "last" / "state.pt")
    with raises(CheckpointError, kind="damaged-state", path="state.pt") as error:
        load_last_state(tmp_path)
    assert str(tmp_path / "last" / "before.pt") in str(error.value)
    gone(tmp_path / "last" / "state.pt")
    with raises(CheckpointError, kind="damaged-state", path="before.pt"):
        load_last_state(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files, which Windows cannot")
def test_a_full_disk_keeps_both_states(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_last_state(tmp_path, at(epoch))
    before = {path.name: path.read_bytes() for path in (tmp_path / "last").iterdir()}
    with full_disk(), raises(OutputError, path="state.pt"):
        save_last_state(tmp_path, at(3))
    assert {path.name: path.read_bytes() for path in (tmp_path / "last").iterdir()} == before


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = ("last/state.pt", "last/before.pt", "best/model.safetensors", "best/.hidden", "notes/.txt")
    kept = [tmp_path / name for name in names]
    left = [tmp_path / f"{folder}.{'0a' * 16}.pt" for folder in ("", "last/", "best/")]
    for path in (*kept, *left):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    promote_state(tmp_path, None)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_is_strict_json_a_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", epochs=None)
    log.write("epoch", epoch=1, miou=float("nan"), iou=[0.5, float("nan")], versions={"x": float("inf")})
    assert lines(log.path) == [
        {"event": "epoch", "epoch": 1, "miou": None, "iou": [0.5, None], "versions": {"x": None}}
    ]


def test_resuming_drops_the_lines_of_what_will_be_redone(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", epochs=None)
    log.write("start", seed=0)
    for epoch in (1, 2, 3):
        log.write("epoch", epoch=epoch)
    with log.path.open("a") as file:
        file.write('{"event": "epoch", "epo')  # the process was killed here
    RunLog(log.path, epochs=2).write("resume")
    assert [(line["event"], line.get("epoch")) for line in lines(log.path)] == [
        ("start", None),
        ("epoch", 1),
        ("epoch", 2),
        ("resume", None),
    ]
    RunLog(log.path, epochs=None)
    assert lines(log.path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files, which Windows cannot")
def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", epochs=None)
    with full_disk(), raises(OutputError, path="log.jsonl"):
        log.write("start", text="x" * 5000)
