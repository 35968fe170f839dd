"""Suite ``models``: whole models beside the baselines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.speed import networks
from benchmarks.speed.figures import DTYPES, Bar, Figures, SuiteProgress, chosen_device, timing, titled
from benchmarks.speed.load import QUIET, loads, under
from benchmarks.speed.measure import environment, interleave

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# With a core busy elsewhere: the ratios may grow this much, and ours may slow down this much more than the plain twin
BUSY_RATIO, BUSY_SLOWDOWN = 1.5, 2.0
SMP = "smp UPerNet-R101"


def time_bars(device: str) -> dict[str, float]:
    """The most of another network's time that ours may take."""
    if device == "cuda":
        return {networks.DANET: 1.0, SMP: 1.0}
    return {networks.DANET: 0.30, SMP: 1.0, networks.TWIN: 1.05}


def benchmark_models(
    size: tuple[int, int],
    *,
    batch: int = 1,
    precision: str = "fp32",
    compiled: bool = False,
    repeats: int = 3,
    busy: bool = False,
    progress: SuiteProgress | None = None,
) -> Figures:
    """Seconds for ``batch`` images of ``size`` (H, W), ours and the baselines, each in its best memory format.

    ``precision`` is the type of weights and images alike on a GPU; on a CPU, "bf16" is autocast, as `Predictor` has it.
    ``compiled`` puts each network through `torch.compile`. With ``busy``, the networks that have a bar are measured
    again while another process keeps a core busy.
    """
    device = chosen_device()
    half = precision == "bf16" and device == "cpu"
    image = torch.randn(batch, 3, *size).to(device, torch.float32 if half else DTYPES[precision])
    models = networks.candidates()
    trials = {}
    for kind, memory_format in FORMATS.items():
        laid = {name: networks.lay_out(model, image, memory_format) for name, model in models.items()}
        calls = {name: networks.inference(model, laid[name], half=half) for name, model in models.items()}
        trials[kind] = interleave(calls, 1, progress=titled(progress, kind))
    best = {name: min(FORMATS, key=lambda kind: trials[kind][name][0]) for name in models}
    calls, how = {}, dict.fromkeys(models, "no")
    for name, model in models.items():
        pixels = networks.lay_out(model, image, FORMATS[best[name]])
        network: Any = model
        if compiled:
            network, how[name] = networks.compile_network(model, pixels)
        calls[name] = networks.inference(network, pixels, half=half)
    compared = {networks.OURS, networks.TWIN, *time_bars(device)}
    rows: list[dict[str, Any]] = []
    for load in loads(busy):
        measured = [name for name in models if load == QUIET or name in compared]
        title = "models" if load == QUIET else f"models, {load}"
        with under(load):
            seconds = interleave({name: calls[name] for name in measured}, repeats, progress=titled(progress, title))
        ours = statistics.median(seconds[networks.OURS])
        for name in measured:
            row: dict[str, Any] = {"model": name, "load": load, "size": list(size), "batch": batch, "dtype": precision}
            row |= {"compiled": how[name], **timing(seconds[name])}
            row |= {"ratio": ours / row["median"], "memory_format": best[name]}
            rows.append({**row, **networks.cost(name, size)._asdict()})
    return Figures(suite="models", rows=rows, bars=model_bars(rows, device, precision))


def model_bars(rows: Sequence[dict[str, Any]], device: str, precision: str) -> list[Bar]:
    """The bars of the networks that were measured: of time against each, and of what a busy core costs."""
    kind = "" if precision == "fp32" else f", {precision}"
    unmeasured = None
    if precision == "bf16" and device == "cpu" and environment()["bf16"] is None:
        unmeasured = "this processor has no instructions for bfloat16"
    bars: list[Bar] = []
    for row in rows:
        bound = time_bars(device).get(row["model"])
        if bound is None:
            continue
        quiet = row["load"] == QUIET
        bars.append(
            Bar(
                name=f"{networks.OURS} / {row['model']}, time{kind}" + ("" if quiet else f", {row['load']}"),
                value=row["ratio"],
                sense="at most",
                bound=bound if quiet else BUSY_RATIO * bound,
                unmeasured=unmeasured,
            )
        )
    for load in dict.fromkeys(row["load"] for row in rows if row["load"] != QUIET):
        slower = {
            name: _median(rows, name, load) / _median(rows, name, QUIET) for name in (networks.OURS, networks.TWIN)
        }
        bars.append(
            Bar(
                name=f"{networks.OURS}, slowdown over that of {networks.TWIN}{kind}, {load}",
                value=slower[networks.OURS] / slower[networks.TWIN],
                sense="at most",
                bound=BUSY_SLOWDOWN,
                unmeasured=unmeasured,
            )
        )
    return bars


def _median(rows: Sequence[dict[str, Any]], model: str, load: str) -> float:
    return next(float(row["median"]) for row in rows if (row["model"], row["load"]) == (model, load))
