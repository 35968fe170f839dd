"""The suite op on small maps: what each row says, and the bars that its figures are held to."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed import operation
from benchmarks.speed.load import LOADS
from ddsm_zoo.ops import sampled_attention
from tests.support.command_line import run_speed

FLOAT = 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("way", list(operation.PEERS))
def test_peers_compute_the_same(way: str, dtype: torch.dtype, tolerance: float) -> None:
    tensors = operation.operation_inputs(8, 9, "cpu", dtype)
    expected = sampled_attention(*(tensor.double() for tensor in tensors), kernel_size=3, backend="reference")
    out = operation.PEERS[way](*tensors, kernel_size=3)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_operation_is_measured_with_its_errors(precision: str, tmp_path: Path) -> None:
    out = tmp_path / "op.json"
    options = ["--side", "8", "--repeats", "2", "--precision", precision, "--json", out]
    result = run_speed("--suite", "op", *options)
    figures = json.loads(out.read_text())
    rows = {(row["backend"], row["taps"], row["backward"]): row for row in figures["rows"]}
    assert len(rows) == 16
    repeats = {row["backend"]: len(row["seconds"]) for row in rows.values()}
    assert repeats == {"cpu": 2, "tap loop": 2, "grid_sample": 2, "reference": 1}
    assert all(row["median"] > 0 and row["load"] == "quiet" for row in rows.values())
    assert {row["dtype"] for row in rows.values()} == {precision}
    size = FLOAT if precision == "fp32" else FLOAT // 2
    # the reference holds the sampled keys and values, 64 channels for each of the 25 taps
    assert rows["reference", 25, False]["extra_bytes"] > size * 64 * 25 * 8 * 8
    bars = {bar["name"]: bar for bar in figures["bars"]}
    assert list(bars) == ["max error", "max gradient error"]
    assert bars["max error"]["holds"]
    assert bars["max gradient error"]["holds"]
    assert "max error" in result.output
    assert "GB/s of a large copy" in " ".join(result.output.split())
    # query, key and value of 64 channels, 2 offsets and a modulation for each of 9 taps; the result has 64 channels
    row = rows["cpu", 9, False]
    assert row["moved_bytes"] == size * 8 * 8 * (3 * 64 + 3 * 9 + 64)
    assert row["roofline"] == pytest.approx(row["moved_bytes"] / figures["environment"]["bandwidth"])


def test_backward_moves_the_inputs_again_and_every_gradient() -> None:
    tensors = [torch.empty(10), torch.empty(10), torch.empty(20), torch.empty(30), torch.empty(40)]
    forward = 110 * FLOAT + 20 * FLOAT
    backward = 110 * FLOAT + 20 * FLOAT + 110 * FLOAT
    assert operation.moved_bytes(tensors, backward=False) == forward
    assert operation.moved_bytes(tensors, backward=True) == forward + backward


def test_a_busy_core_is_measured_beside_the_quiet(tmp_path: Path) -> None:
    out = tmp_path / "op.json"
    run_speed("--suite", "op", "--side", "4", "--repeats", "1", "--busy", "--json", out)
    rows = json.loads(out.read_text())["rows"]
    timed = {(row["backend"], row["load"]) for row in rows if row["backend"] != "reference"}
    assert timed == set(itertools.product(("cpu", *operation.PEERS), LOADS))


def measured(backend: str, median: float, extra: int, *, backward: bool, load: str = "quiet") -> dict[str, Any]:
    shape = {"side": 256, "taps": 25, "backward": backward, "load": load}
    return {"backend": backend, **shape, "median": median, "extra_bytes": extra}


def table(fast: str) -> list[dict[str, Any]]:
    """Three times faster than the tap loop in a ninth of the reference's memory, forward; four times and a fifth."""
    return [
        measured(fast, 1.0, 100, backward=False),
        measured("tap loop", 3.0, 300, backward=False),
        measured("grid_sample", 2.0, 800, backward=False),
        measured(fast, 2.0, 100, backward=False, load="one core busy, nice 0"),
        measured("tap loop", 5.0, 300, backward=False, load="one core busy, nice 0"),
        measured("grid_sample", 8.0, 300, backward=False, load="one core busy, nice 0"),
        measured("reference", 9.0, 900, backward=False),
        measured(fast, 2.0, 100, backward=True),
        measured("tap loop", 8.0, 400, backward=True),
        measured("grid_sample", 1.0, 400, backward=True),
        measured("reference", 10.0, 500, backward=True),
        {"side": 64, "taps": 25, "backward": True, "backend": fast, "max_error": 5e-3, "max_gradient_error": 5e-4},
    ]


def test_bars_of_a_cpu() -> None:
    bars = {bar.name: bar for bar in operation.operation_bars(table("cpu"), "cpu", "fp32")}
    assert {name: (bar.value, bar.holds) for name, bar in bars.items()} == {
        "forward, times faster than a tap loop": (3.0, True),
        "forward, times faster than grid_sample": (2.0, True),
        "forward, times faster than a tap loop, one core busy, nice 0": (2.5, False),
        "forward, times faster than grid_sample, one core busy, nice 0": (4.0, True),
        "forward, share of the extra memory": (pytest.approx(1 / 9), True),
        "forward and backward, times faster than a tap loop": (4.0, False),
        "forward and backward, times faster than grid_sample": (0.5, False),
        "forward and backward, share of the extra memory": (0.2, True),
        "max error": (5e-3, False),
        "max gradient error": (5e-4, True),
    }


def test_bars_of_a_gpu_ask_for_less_memory_and_allow_for_half_precision() -> None:
    bars = {bar.name: bar.holds for bar in operation.operation_bars(table("triton"), "cuda", "bf16")}
    assert not bars["forward, share of the extra memory"]
    assert bars["forward, times faster than a tap loop"]
    assert bars["max error"]
    assert [bar.name for bar in operation.operation_bars(table("cpu"), "cpu", "bf16")] == list(bars)[-2:]
