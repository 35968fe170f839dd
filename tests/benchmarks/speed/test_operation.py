"""The suite op on small maps: what each row says, and the bars that its figures are held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed import operation
from ddsm_zoo.ops import sampled_attention
from tests.support.command_line import run_speed

FLOAT = 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_grid_sample_computes_the_same(dtype: torch.dtype, tolerance: float) -> None:
    tensors = operation.operation_inputs(8, 9, "cpu", dtype)
    expected = sampled_attention(*(tensor.double() for tensor in tensors), kernel_size=3, backend="reference")
    out = operation.by_grid_sample(*tensors, kernel_size=3)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_operation_is_measured_with_its_errors(precision: str, tmp_path: Path) -> None:
    out = tmp_path / "op.json"
    options = ["--side", "8", "--repeats", "2", "--precision", precision, "--json", out]
    result = run_speed("--suite", "op", *options)
    figures = json.loads(out.read_text())
    rows = {(row["backend"], row["taps"], row["backward"]): row for row in figures["rows"]}
    assert len(rows) == 12
    assert all(len(row["seconds"]) == 2 and row["median"] > 0 for row in rows.values())
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


def measured(backend: str, median: float, extra: int, *, backward: bool) -> dict[str, Any]:
    shape = {"side": 256, "taps": 25, "backward": backward}
    return {"backend": backend, **shape, "median": median, "extra_bytes": extra}


def table(fast: str) -> list[dict[str, Any]]:
    """Nine times faster than the reference in a ninth of its memory, forward; five times and a fifth, backward."""
    return [
        measured(fast, 1.0, 100, backward=False),
        measured("reference", 9.0, 900, backward=False),
        measured("grid_sample", 3.0, 800, backward=False),
        measured(fast, 2.0, 100, backward=True),
        measured("reference", 10.0, 500, backward=True),
        measured("grid_sample", 4.0, 400, backward=True),
        {"side": 64, "taps": 25, "backward": True, "backend": fast, "max_error": 5e-3, "max_gradient_error": 5e-4},
    ]


def test_bars_of_a_cpu() -> None:
    bars = {bar.name: bar for bar in operation.operation_bars(table("cpu"), "cpu", "fp32")}
    assert bars["forward, times faster"].value == 9
    assert bars["forward, times faster than grid_sample"].value == 3
    assert bars["forward, share of the extra memory"].value == pytest.approx(1 / 9)
    assert bars["forward and backward, times faster"].value == 5
    held = {name: bar.holds for name, bar in bars.items()}
    assert not held.pop("max error")
    assert all(held.values())
    assert len(held) == 7


def test_bars_of_a_gpu_ask_for_more_of_speed_and_less_of_half_precision() -> None:
    bars = {bar.name: bar.holds for bar in operation.operation_bars(table("triton"), "cuda", "bf16")}
    assert bars == {
        "forward, times faster": False,
        "forward, times faster than grid_sample": True,
        "forward, share of the extra memory": False,
        "forward and backward, times faster": False,
        "forward and backward, times faster than grid_sample": True,
        "forward and backward, share of the extra memory": False,
        "max error": True,
        "max gradient error": True,
    }
