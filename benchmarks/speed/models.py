"""Suite ``models``: whole models beside the baselines."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.speed import networks
from benchmarks.speed.figures import DTYPES, Bar, Figures, SuiteProgress, chosen_device, timing, titled
from benchmarks.speed.measure import interleave

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# device -> the most of another network's time that ours may take
TIME_BARS = {
    "cpu": {networks.DANET: 0.30, "smp UPerNet-R101": 1.0, "uper_r101": 1.0},
    "cuda": {networks.DANET: 1.0, "smp UPerNet-R101": 1.0},
}


def benchmark_models(
    size: tuple[int, int],
    *,
    batch: int = 1,
    precision: str = "fp32",
    compiled: bool = False,
    repeats: int = 3,
    progress: SuiteProgress | None = None,
) -> Figures:
    """Seconds for ``batch`` images of ``size`` (H, W), ours and the baselines, each in its best memory format.

    ``precision`` is the type of weights and images alike, ``compiled`` puts each network through `torch.compile`.
    """
    device = chosen_device()
    image = torch.randn(batch, 3, *size).to(device, DTYPES[precision])
    models = networks.candidates()
    trials = {}
    for kind, memory_format in FORMATS.items():
        laid = {name: networks.lay_out(model, image, memory_format) for name, model in models.items()}
        calls = {name: networks.inference(model, laid[name]) for name, model in models.items()}
        trials[kind] = interleave(calls, 1, progress=titled(progress, kind))
    best = {name: min(FORMATS, key=lambda kind: trials[kind][name][0]) for name in models}
    calls, how = {}, dict.fromkeys(models, "no")
    for name, model in models.items():
        pixels = networks.lay_out(model, image, FORMATS[best[name]])
        network: Any = model
        if compiled:
            network, how[name] = networks.compile_network(model, pixels)
        calls[name] = networks.inference(network, pixels)
    seconds = interleave(calls, repeats, progress=titled(progress, "models"))
    ours = statistics.median(seconds[networks.OURS])
    rows: list[dict[str, Any]] = []
    for name in models:
        settings = {"size": list(size), "batch": batch, "dtype": precision, "compiled": how[name]}
        measured = timing(seconds[name])
        row = {"model": name, **settings, **measured, "ratio": ours / measured["median"], "memory_format": best[name]}
        rows.append({**row, **networks.cost(name, size)._asdict()})
    bounds = TIME_BARS[device]
    bars = [
        Bar(
            name=f"{networks.OURS} / {row['model']}, time",
            value=row["ratio"],
            sense="at most",
            bound=bounds[row["model"]],
        )
        for row in rows
        if row["model"] in bounds
    ]
    return Figures(suite="models", rows=rows, bars=bars)
