"""Files of a run: what is in them, what survives, and what is refused."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddsm_zoo.engine.checkpoint import CheckpointError, RunLog, discard_unfinished, load_state, save_state, save_weights
from ddsm_zoo.files import OutputError

STATE = {"model": {"w": torch.arange(5000.0)}, "position": {"epoch": 3, "miou": float("nan")}, "average": None}


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow past 4 KiB, as on a disk that has no more room.

    Not a fixture: pytest prints the outcome of a test before it takes fixtures down, and its output may be a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
    with full_disk(), pytest.raises(OutputError, match=r"cannot write .*state\.pt: "):
        save_state(tmp_path / "state.pt", STATE)
    with full_disk(), pytest.raises(OutputError, match=r"cannot write .*model\.safetensors: "):
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
    with pytest.raises(CheckpointError, match="is damaged: delete it to train from the start"):
        load_state(path)


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor(1234.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_state(path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran code from a file')",)


def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for content in ({"format": 1, "model": Bomb()}, {"format": 0}, [1, 2], {"weight": torch.ones(1)}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="is not a training state of format 1"):
            load_state(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match="is not a training state"):
        load_state(path)
    with pytest.raises(FileNotFoundError, match="no training state at"):
        load_state(tmp_path / "absent.pt")


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("last/state.pt", "best/model.safetensors", "best/.hidden", "notes/.txt")]
    left = [tmp_path / "last" / f".{'0a' * 16}.pt", tmp_path / "best" / f".{'f' * 32}.safetensors"]
    for path in (*kept, *left):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    discard_unfinished(tmp_path)
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
    with full_disk(), pytest.raises(OutputError, match=r"cannot write .*log\.jsonl: "):
        log.write("start", text="x" * 5000)
