"""The suite models on networks of milliseconds, and the counts that the baselines are published with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed import Bar, benchmark_models, models, networks
from benchmarks.speed.baselines import DANet
from ddsm_zoo.models import count
from tests.support.command_line import run_speed

TITLE = networks.DANET


def test_danet_has_its_published_size() -> None:
    with torch.device("meta"):
        params, multiply_adds = count(DANet(19), (3, 1024, 1024))
    assert params / 1e6 == pytest.approx(66.5, abs=0.05)
    assert multiply_adds / 1e9 == pytest.approx(1270, abs=5)


@pytest.mark.usefixtures("small_models")
def test_models_are_compared_by_their_medians() -> None:
    ticks: list[str] = []
    figures = benchmark_models((64, 96), repeats=3, progress=lambda title, done, total: ticks.append(title))
    rows = {row["model"]: row for row in figures.rows}
    assert list(rows) == ["uper_ddsm_tiny", "uper_tiny", TITLE, "smp UPerNet-R101"]
    assert rows["uper_ddsm_tiny"]["ratio"] == 1
    assert rows[TITLE]["params"] == 4 * 19
    assert rows[TITLE]["multiply_adds"] == 3 * 19 * 64 * 96
    assert all(row["memory_format"] in ("contiguous", "channels_last") for row in rows.values())
    assert {(row["batch"], row["dtype"], row["compiled"]) for row in rows.values()} == {(1, "fp32", "no")}
    expected = rows["uper_ddsm_tiny"]["median"] / rows[TITLE]["median"]
    bar = next(bar for bar in figures.bars if TITLE in bar.name)
    assert (bar.value, bar.bound, bar.holds) == (expected, 0.30, expected <= 0.30)
    assert set(ticks) == {"contiguous", "channels_last", "models"}


@pytest.mark.usefixtures("small_models")
def test_a_busy_core_is_measured_for_the_networks_with_a_bar() -> None:
    figures = benchmark_models((32, 32), repeats=1, busy=True)
    loads = ["quiet", "one core busy, nice 19", "one core busy, nice 0"]
    assert [row["load"] for row in figures.rows if row["model"] == TITLE] == loads
    medians = {(row["model"], row["load"]): row["median"] for row in figures.rows}
    slowdown = {
        name: medians[name, "one core busy, nice 0"] / medians[name, "quiet"]
        for name in ("uper_ddsm_tiny", "uper_tiny")
    }
    bars = {bar.name: bar for bar in figures.bars}
    bar = bars["uper_ddsm_tiny, slowdown over that of uper_tiny, one core busy, nice 0"]
    assert bar.value == pytest.approx(slowdown["uper_ddsm_tiny"] / slowdown["uper_tiny"])
    assert bar.bound == 2.0
    assert bars["uper_ddsm_tiny / uper_tiny, time"].bound == 1.05
    assert bars["uper_ddsm_tiny / uper_tiny, time, one core busy, nice 19"].bound == pytest.approx(1.5 * 1.05)


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("unit", ["amx_bf16", None])
def test_bars_of_bf16_count_where_the_processor_has_it(unit: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "environment", lambda: {"bf16": unit})
    figures = benchmark_models((32, 32), repeats=1, precision="bf16")
    assert figures.bars[0].name == "uper_ddsm_tiny / uper_tiny, time, bf16"
    assert all((bar.holds is None) == (unit is None) for bar in figures.bars)


class Remembering(nn.Conv2d):
    """A network that tells what it was given, and what it computed in."""

    seen: list[tuple[torch.Size, torch.dtype]] = []  # noqa: RUF012 - of all its copies

    def __init__(self, classes: int) -> None:
        super().__init__(3, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.seen.append((x.shape, out.dtype))
        return out


@pytest.mark.usefixtures("small_models")
def test_all_run_under_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "BASELINES", {TITLE: Remembering, "smp UPerNet-R101": Remembering})
    out = tmp_path / "models.json"
    settings = ["--size", "32x48", "--batch", "2", "--precision", "bf16", "--repeats", "1", "--json", out]
    result = run_speed("--suite", "models", *settings)
    assert "bf16" in result.output
    rows = json.loads(out.read_text())["rows"]
    assert {(row["batch"], row["dtype"]) for row in rows} == {(2, "bf16")}
    given = [entry for entry in Remembering.seen if entry[1] != torch.float32]  # counting is done in float32
    assert set(given) == {((2, 3, 32, 48), torch.bfloat16)}
    assert len(given) == 2 * (2 * 2 + 2)  # two networks: a warm-up and a call for each format, and for the comparison


def test_bars_of_a_gpu() -> None:
    assert models.time_bars("cuda") == {TITLE: 1.0, "smp UPerNet-R101": 1.0}
    assert set(models.time_bars("cpu")) <= {*networks.BASELINES, *networks.OWN}


class Breaking(nn.Conv2d):
    """A network within which the compiler has to stop."""

    def __init__(self) -> None:
        super().__init__(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        torch._dynamo.graph_break()
        return out * 2


def test_compiled_networks_say_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "COMPILER", "eager")
    image = torch.randn(1, 3, 32, 32)
    for model, expected in ((nn.Conv2d(3, 4, 1), "whole"), (Breaking(), "in parts")):
        network, how = networks.compile_network(model, image)
        assert how == expected
        with torch.inference_mode():
            torch.testing.assert_close(network(image), model(image), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("small_models")
def test_compiled_models_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "COMPILER", "eager")
    figures = benchmark_models((32, 32), compiled=True, repeats=1)
    assert {row["model"]: row["compiled"] for row in figures.rows} == dict.fromkeys(networks.candidates(), "whole")


def test_bars_hold_on_their_side() -> None:
    assert Bar(name="", value=8.0, sense="at least", bound=8.0).holds
    assert Bar(name="", value=7.9, sense="at least", bound=8.0).holds is False
    assert Bar(name="", value=0.3, sense="at most", bound=0.3).holds
    assert Bar(name="", value=0.31, sense="at most", bound=0.3).holds is False
    assert Bar(name="", value=9.0, sense="at least", bound=8.0, unmeasured="no GPU").holds is None
