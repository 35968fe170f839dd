"""The suites on small inputs, and the counts that the peers are published with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ddsm_zoo import benchmarking
from ddsm_zoo.benchmarking import Bar
from ddsm_zoo.cli import app
from ddsm_zoo.models import count
from ddsm_zoo.ops import sampled_attention
from ddsm_zoo.peers import DANet

TITLE = "DANet-R101, stride 8"


def test_danet_has_its_published_size() -> None:
    with torch.device("meta"):
        params, multiply_adds = count(DANet(19), (3, 1024, 1024))
    assert params / 1e6 == pytest.approx(66.5, rel=0.01)
    assert multiply_adds / 1e9 == pytest.approx(1270, rel=0.01)


def test_grid_sample_computes_the_same() -> None:
    tensors = benchmarking._operation_inputs(8, 9, "cpu")
    expected = sampled_attention(*(tensor.double() for tensor in tensors), kernel_size=3, backend="reference")
    out = benchmarking._by_grid_sample(*tensors, kernel_size=3)
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=0)


def test_operation_is_measured_with_its_errors(tmp_path: Path) -> None:
    out = tmp_path / "op.json"
    call = ["benchmark", "--suite", "op", "--side", "8", "--repeats", "2", "--json", str(out)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    rows = {(row["backend"], row["taps"], row["backward"]): row for row in figures["rows"]}
    assert len(rows) == 12
    assert all(len(row["seconds"]) == 2 and row["median"] > 0 for row in rows.values())
    # the reference holds the sampled keys and values, 64 channels for each of the 25 taps
    assert rows["reference", 25, False]["extra_bytes"] > 4 * 64 * 25 * 8 * 8
    bars = {bar["name"]: bar for bar in figures["bars"]}
    assert bars["max error"]["holds"]
    assert bars["max gradient error"]["holds"]
    assert "max error" in result.output


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites with models that take milliseconds; what they measure stays the same."""
    monkeypatch.setattr(benchmarking, "OURS", "uper_ddsm_tiny")
    monkeypatch.setattr(benchmarking, "OWN", ("uper_ddsm_tiny", "uper_tiny"))

    def build(classes: int) -> torch.nn.Module:
        return torch.nn.Conv2d(3, classes, 1)

    monkeypatch.setattr(benchmarking, "PEERS", {TITLE: build, "smp UPerNet-R101": build})


@pytest.mark.usefixtures("small_models")
def test_models_are_compared_by_their_medians() -> None:
    ticks: list[str] = []
    figures = benchmarking.benchmark_models(
        (64, 96), repeats=3, progress=lambda title, done, total: ticks.append(title)
    )
    rows = {row["model"]: row for row in figures.rows}
    assert list(rows) == ["uper_ddsm_tiny", "uper_tiny", TITLE, "smp UPerNet-R101"]
    assert rows["uper_ddsm_tiny"]["ratio"] == 1
    assert rows[TITLE]["params"] == 4 * 19
    assert rows[TITLE]["multiply_adds"] == 3 * 19 * 64 * 96
    assert all(row["memory_format"] in ("contiguous", "channels_last") for row in rows.values())
    expected = rows["uper_ddsm_tiny"]["median"] / rows[TITLE]["median"]
    bar = next(bar for bar in figures.bars if TITLE in bar.name)
    assert (bar.value, bar.bound, bar.holds) == (expected, 0.30, expected <= 0.30)
    assert set(ticks) == {"contiguous", "channels_last", "models"}


@pytest.mark.usefixtures("small_models")
def test_growth_is_drawn(tmp_path: Path) -> None:
    picture, out = tmp_path / "growth.png", tmp_path / "growth.json"
    sides = ["--side", "32", "--side", "64"]
    call = ["benchmark", "--suite", "growth", *sides, "--repeats", "1", "--plot", str(picture), "--json", str(out)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 100
    figures = json.loads(out.read_text())
    assert [row["size"] for row in figures["rows"]] == 3 * [[32, 32], [64, 64]] + [[1024, 2048]]
    assert figures["rows"][-1]["extra_bytes"] > 4 * 19 * 1024 * 2048
    assert math.isfinite(figures["bars"][0]["value"])


def test_bars_hold_on_their_side() -> None:
    assert Bar(name="", value=8.0, sense="at least", bound=8.0).holds
    assert not Bar(name="", value=7.9, sense="at least", bound=8.0).holds
    assert Bar(name="", value=0.3, sense="at most", bound=0.3).holds
    assert not Bar(name="", value=0.31, sense="at most", bound=0.3).holds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "op", "--plot", "x.png"], "--plot draws the suite growth, got op"),
        (["--suite", "models", "--size", "0"], "size is '0', expected pixels"),
        (["--suite", "growth", "--side", "64", "--repeats", "1"], "expected at least two to see growth"),
    ],
)
def test_what_cannot_be_measured(arguments: list[str], message: str, small_models: None) -> None:
    result = CliRunner().invoke(app, ["benchmark", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
