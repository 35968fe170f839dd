"""What `ddsm-zoo benchmark` measures: the operation, whole models beside their peers, growth with the image."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_zoo.engine.benchmark import environment, exponent, interleave, peak_memory
from ddsm_zoo.factory import create_model
from ddsm_zoo.files import atomic_path
from ddsm_zoo.models import Complexity, complexity, count
from ddsm_zoo.ops import Backend, sampled_attention
from ddsm_zoo.ops.grid import sampling_positions
from ddsm_zoo.peers import PEERS
from ddsm_zoo.zoo import model_config

OURS = "uper_ddsm_r101"
OWN = (OURS, "uper_r101", "uper_dcn_r101")
DANET = "DANet-R101, stride 8"
CLASSES = 19
CHANNELS = 64
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Where the reference's (N, C, K, H, W) tensors, and DANet's (HW, HW) one, still fit into a common machine
REFERENCE_SAMPLES = 25 * 256**2
ERROR_SAMPLES = 25 * 64**2
DANET_SIDE = 1024
GRID_SAMPLE = "grid_sample"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bound that a figure is held to: ``value`` is to be at most, or at least, ``bound``."""

    name: str
    value: float
    sense: Literal["at most", "at least"]
    bound: float

    @property
    def holds(self) -> bool:
        return self.value <= self.bound if self.sense == "at most" else self.value >= self.bound


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a suite measured: ``rows`` of plain values, and the bars that they answer."""

    suite: str
    rows: list[dict[str, Any]]
    bars: list[Bar]
    environment: dict[str, Any] = field(default_factory=environment)

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        bars = [{**vars(bar), "holds": bar.holds} for bar in self.bars]
        return {"suite": self.suite, "environment": self.environment, "rows": self.rows, "bars": bars}


def benchmark_operation(
    sides: Sequence[int], *, repeats: int = 5, progress: Progress | None = None, taps: Sequence[int] = (9, 25)
) -> Figures:
    """Time, extra memory and error of `sampled_attention` on (1, 64, side, side) maps, the fast path and the reference.

    Beside them "grid_sample", which materialises what torch's own sampling gives: faster than the reference, and what
    one would write first. The error is the largest difference from float64 on inputs of unit variance; that of the
    gradients is relative to the largest of each.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast: Backend = "triton" if device == "cuda" else "cpu"
    rows = []
    for side in sides:
        for number in taps:
            tensors = _operation_inputs(side, number, device)
            materialising = ["reference", GRID_SAMPLE] if number * side**2 <= REFERENCE_SAMPLES else []
            for backward in (False, True):
                run = functools.partial(_attend, tensors, backward)
                calls: dict[str, Callable[[], object]] = {
                    name: functools.partial(run, name) for name in (fast, *materialising)
                }
                title = f"{side} x {side}, {number} taps"
                seconds = interleave(calls, repeats, progress=_titled(progress, title))
                for name, call in calls.items():
                    row = {"backend": name, "side": side, "taps": number, "backward": backward}
                    rows.append(row | _timing(seconds[name]) | {"extra_bytes": peak_memory(call)})
            if number * side**2 <= ERROR_SAMPLES:
                rows[-len(calls)] |= _errors(tensors, fast)
    return Figures(suite="op", rows=rows, bars=_operation_bars(rows))


def benchmark_models(size: tuple[int, int], *, repeats: int = 3, progress: Progress | None = None) -> Figures:
    """Seconds per image of ours and of the peers at ``size`` (H, W), each in the memory format that suits it better.

    Ours run as `Predictor` runs them, with normalisation folded.
    """
    image = torch.randn(1, 3, *size)
    models: dict[str, nn.Module] = {name: create_model(name, num_classes=CLASSES).fuse() for name in OWN}
    models |= {name: build(CLASSES).eval() for name, build in PEERS.items()}
    trials = {}
    for name, memory_format in FORMATS.items():
        trials[name] = interleave(_inferences(models, image, memory_format), 1, progress=_titled(progress, name))
    best = {name: min(FORMATS, key=lambda kind: trials[kind][name][0]) for name in models}
    calls = {name: _inference(model, image, FORMATS[best[name]]) for name, model in models.items()}
    seconds = interleave(calls, repeats, progress=_titled(progress, "models"))
    ours = statistics.median(seconds[OURS])
    rows = []
    for name in models:
        timing = _timing(seconds[name])
        cost = {"ratio": ours / timing["median"], "memory_format": best[name], **_cost(name, size)._asdict()}
        rows.append({"model": name, "size": list(size), **timing, **cost})
    bounds = {DANET: 0.30, "smp UPerNet-R101": 1.0, "uper_r101": 1.0}
    bars = [
        Bar(name=f"{OURS} / {row['model']}, time", value=row["ratio"], sense="at most", bound=bounds[row["model"]])
        for row in rows
        if row["model"] in bounds
    ]
    return Figures(suite="models", rows=rows, bars=bars)


def benchmark_growth(sides: Sequence[int], *, repeats: int = 3, progress: Progress | None = None) -> Figures:
    """Seconds and extra memory of ours, of the plain model and of DANet on square images of several sizes.

    The last row is the memory of ours at 1024 x 2048, a whole image of Cityscapes. Raises ValueError for a single size.
    """
    if len(set(sides)) < 2:
        raise ValueError(f"got the sides {list(sides)}, expected at least two to see growth")
    models: dict[str, nn.Module] = {name: create_model(name, num_classes=CLASSES).fuse() for name in OWN[:2]}
    models[DANET] = PEERS[DANET](CLASSES).eval()
    calls = {
        (name, side): _inference(model, torch.randn(1, 3, side, side), torch.channels_last)
        for name, model in models.items()
        for side in sides
        if name != DANET or side <= DANET_SIDE
    }
    seconds = interleave({str(key): call for key, call in calls.items()}, repeats, progress=_titled(progress, "growth"))
    rows: list[dict[str, Any]] = [
        {"model": name, "size": [side, side], **_timing(seconds[str((name, side))]), "extra_bytes": peak_memory(call)}
        for (name, side), call in calls.items()
    ]
    own = [row for row in rows if row["model"] == OURS]
    growth = exponent([row["size"][0] ** 2 for row in own], [row["median"] for row in own])
    whole = _inference(models[OURS], torch.randn(1, 3, 1024, 2048), torch.channels_last)
    rows.append({"model": OURS, "size": [1024, 2048], "extra_bytes": peak_memory(whole)})
    bars = [Bar(name=f"{OURS}, exponent of time over pixels", value=growth, sense="at most", bound=1.05)]
    return Figures(suite="growth", rows=rows, bars=bars)


def plot_growth(figures: Figures, path: Path) -> None:
    """Draw the time of each model over the pixels of the image, both in logarithms.

    Raises LookupError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise LookupError(f"plots need the package {error.name}: pip install 'ddsm-zoo[benchmark]'") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    timed = [row for row in figures.rows if "median" in row]
    for name in dict.fromkeys(row["model"] for row in timed):
        points = [(math.prod(row["size"]) / 1e6, row["median"]) for row in timed if row["model"] == name]
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="megapixels", ylabel="seconds per image")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png")


def _operation_inputs(side: int, taps: int, device: str) -> list[Tensor]:
    """Query, key, value, offsets of a pixel or two and modulations, channels-last as the convolutions make them."""
    generator = torch.Generator().manual_seed(0)
    shapes = (CHANNELS, CHANNELS, CHANNELS, 2 * taps)
    tensors = [torch.randn(1, channels, side, side, generator=generator) for channels in shapes]
    tensors.append(torch.rand(1, taps, side, side, generator=generator))
    return [tensor.to(device).contiguous(memory_format=torch.channels_last) for tensor in tensors]


def _attend(tensors: list[Tensor], backward: bool, way: str) -> None:
    leaves = [tensor.detach().requires_grad_(backward) for tensor in tensors]
    kernel_size = math.isqrt(tensors[-1].shape[1])
    if way == GRID_SAMPLE:
        out = _by_grid_sample(*leaves, kernel_size=kernel_size)
    else:
        out = sampled_attention(*leaves, kernel_size=kernel_size, backend=cast(Backend, way))
    if backward:
        torch.autograd.grad(out, leaves, torch.ones_like(out))


def _by_grid_sample(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, *, kernel_size: int
) -> Tensor:
    """Sampled attention as one writes it with `torch.nn.functional.grid_sample`."""
    height, width = value.shape[-2:]
    y, x = sampling_positions(offset, kernel_size)  # (N, K, H, W)
    grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1).flatten(1, 2)  # (N, KH, W, 2)

    def sample(features: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, K, H, W)
        sampled = F.grid_sample(features, grid, align_corners=True)
        return sampled.view(*features.shape[:2], -1, height, width) * modulation[:, None]

    affinity = torch.einsum("nchw,nckhw->nkhw", query, sample(key)).softmax(dim=1)
    return torch.einsum("nkhw,nckhw->nchw", affinity, sample(value))


def _errors(tensors: list[Tensor], backend: Backend) -> dict[str, float]:
    results = []
    for dtype, path in ((torch.float32, backend), (torch.float64, "reference")):
        leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in tensors]
        out = sampled_attention(*leaves, kernel_size=math.isqrt(tensors[-1].shape[1]), backend=path)
        results.append((out, torch.autograd.grad(out.sum(), leaves)))
    (out, grads), (expected, targets) = results
    relative = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(grads, targets, strict=True)]
    return {"max_error": (out - expected).abs().max().item(), "max_gradient_error": max(relative)}


def _operation_bars(rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """The bars of the operation at 256 x 256 with 25 taps, and of its errors, as far as they were measured."""
    bars: list[Bar] = []
    for backward, speed, share in ((False, 8.0, 1 / 8), (True, 4.0, 1 / 4)):
        pair = [row for row in rows if (row["side"], row["taps"], row["backward"]) == (256, 25, backward)]
        if len(pair) == 3:
            fast, reference, grid_sample = pair
            name = "forward and backward" if backward else "forward"
            times = reference["median"] / fast["median"]
            bars.append(Bar(name=f"{name}, times faster", value=times, sense="at least", bound=speed))
            times = grid_sample["median"] / fast["median"]
            bars.append(Bar(name=f"{name}, times faster than grid_sample", value=times, sense="at least", bound=1.0))
            memory = fast["extra_bytes"] / reference["extra_bytes"]
            bars.append(Bar(name=f"{name}, share of the extra memory", value=memory, sense="at most", bound=share))
    for key, bound in (("max_error", 1e-4), ("max_gradient_error", 1e-3)):
        if values := [row[key] for row in rows if key in row]:
            bars.append(Bar(name=key.replace("_", " "), value=max(values), sense="at most", bound=bound))
    return bars


def _inferences(
    models: Mapping[str, nn.Module], image: Tensor, memory_format: torch.memory_format
) -> dict[str, Callable[[], object]]:
    return {name: _inference(model, image, memory_format) for name, model in models.items()}


def _inference(model: nn.Module, image: Tensor, memory_format: torch.memory_format) -> Callable[[], object]:
    """A call of ``model``, which is converted to ``memory_format`` for good."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ready: Any = model.to(device)
    ready = ready.to(memory_format=memory_format)  # its type leaves out that a format alone will do
    pixels = image.to(device).contiguous(memory_format=memory_format)

    def infer() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = ready(pixels)
            return logits

    return infer


def _cost(name: str, size: tuple[int, int]) -> Complexity:
    if name in OWN:
        return complexity(model_config(name), size)
    with torch.device("meta"):
        return count(PEERS[name](CLASSES), (3, *size))


def _timing(seconds: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(seconds), "seconds": list(seconds)}


def _titled(progress: Progress | None, title: str) -> Callable[[int, int], None] | None:
    return functools.partial(progress, title) if progress else None
