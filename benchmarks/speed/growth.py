"""Suite ``growth``: time and memory over the size of the image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import networks
from benchmarks.speed.figures import Bar, Figures, SuiteProgress, chosen_device, timing, titled
from benchmarks.speed.measure import exponent, interleave, peak_memory
from ddsm_zoo.utils.files import atomic_path

# Where DANet's (HW, HW) tensor still fits into a common machine
DANET_SIDE = 1024
# An image of Cityscapes and one of four times its pixels, run once each
WHOLE: tuple[tuple[int, int], ...] = ((1024, 2048), (2048, 4096))


def benchmark_growth(sides: Sequence[int], *, repeats: int = 3, progress: SuiteProgress | None = None) -> Figures:
    """Seconds and extra memory of ours, of the plain model and of DANet on square images of several sizes.

    The last rows are ours at the sizes of `WHOLE`. Raises ValueError for a single size.
    """
    if len(set(sides)) < 2:
        raise ValueError(f"got the sides {list(sides)}, expected at least two to see growth")
    models = {name: networks.build(name) for name in (*networks.OWN[:2], networks.DANET)}

    def call(name: str, size: tuple[int, int]) -> Callable[[], Tensor]:
        image = torch.randn(1, 3, *size).to(chosen_device())
        return networks.inference(models[name], networks.lay_out(models[name], image, torch.channels_last))

    calls = {
        (name, side): call(name, (side, side))
        for name in models
        for side in sides
        if name != networks.DANET or side <= DANET_SIDE
    }
    seconds = interleave({str(key): run for key, run in calls.items()}, repeats, progress=titled(progress, "growth"))
    settings = {"batch": 1, "dtype": "fp32", "compiled": "no"}
    rows: list[dict[str, Any]] = [
        {"model": name, "size": [side, side], **settings, **timing(seconds[str((name, side))])}
        | {"extra_bytes": peak_memory(run)}
        for (name, side), run in calls.items()
    ]
    for size in WHOLE:
        run = call(networks.OURS, size)
        began = time.perf_counter()
        extra = peak_memory(run)
        row = {"model": networks.OURS, "size": list(size), **settings, **timing([time.perf_counter() - began])}
        rows.append({**row, "extra_bytes": extra})
    own = [row for row in rows if row["model"] == networks.OURS]
    growth = exponent([math.prod(row["size"]) for row in own], [row["median"] for row in own])
    bars = [Bar(name=f"{networks.OURS}, exponent of time over pixels", value=growth, sense="at most", bound=1.05)]
    return Figures(suite="growth", rows=rows, bars=bars)


def check_plot(path: Path) -> None:
    """Raise, before anything is measured, LookupError without matplotlib and ValueError for what is no picture."""
    kinds = _figure().canvas.get_supported_filetypes()
    if _kind(path) not in kinds:
        expected = ", ".join(f".{kind}" for kind in kinds)
        raise ValueError(f"the plot is to be {path}, expected a name that ends in one of {expected}")


def plot_growth(figures: Figures, path: Path) -> None:
    """Draw the time of each model over the pixels of the image, both in logarithms.

    Raises what `check_plot` raises.
    """
    check_plot(path)
    figure = _figure()
    axes = figure.add_subplot()
    timed = [row for row in figures.rows if "median" in row]
    for name in dict.fromkeys(row["model"] for row in timed):
        points = [(math.prod(row["size"]) / 1e6, row["median"]) for row in timed if row["model"] == name]
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="megapixels", ylabel="seconds per image")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=_kind(path))


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise LookupError(f"plots need the package {error.name}: pip install 'ddsm-zoo[benchmark]'") from error
    return Figure(figsize=(6, 4), layout="constrained")


def _kind(path: Path) -> str:
    """The kind of picture that a file name asks for."""
    return path.suffix.removeprefix(".").lower() or "png"
