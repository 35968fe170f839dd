"""Suite ``op``: the operation beside what a user would write with torch."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.figures import DTYPES, Bar, Figures, SuiteProgress, chosen_device, timing, titled
from benchmarks.speed.load import QUIET, loads, under
from benchmarks.speed.measure import copy_bandwidth, environment, interleave, peak_memory
from ddsm_zoo.ops import Backend, sampled_attention
from ddsm_zoo.ops.grid import sampling_positions

CHANNELS = 64
# Where (N, C, K, H, W) tensors still fit into a common machine
PEER_SAMPLES = 25 * 256**2
ERROR_SAMPLES = 25 * 64**2
TAP_LOOP, GRID_SAMPLE, REFERENCE = "tap loop", "grid_sample", "reference"
# with the backward pass or without, times faster than the tap loop
SPEED_BARS = {False: 3.0, True: 5.0}
# device -> with the backward pass or without, share of the reference's extra memory
MEMORY_BARS = {"cpu": {False: 1 / 8, True: 1 / 4}, "cuda": {False: 0.1, True: 0.1}}
# Of the result, absolute, and of the gradients, relative to the largest. In half precision rounding the results alone
# costs 2**-9 (bf16) and 2**-12 (fp16) of values up to about 4.
ERROR_BARS = {"fp32": (1e-4, 1e-3), "bf16": (2e-2, 2e-2), "fp16": (3e-3, 3e-3)}


def benchmark_operation(
    sides: Sequence[int],
    *,
    precision: str = "fp32",
    repeats: int = 5,
    busy: bool = False,
    progress: SuiteProgress | None = None,
    taps: Sequence[int] = (9, 25),
) -> Figures:
    """Time, extra memory and error of `sampled_attention` on (1, 64, side, side) maps, beside what a user would write.

    "tap loop" samples tap by tap with torch's `grid_sample`, "grid_sample" all taps at once. "reference" is our own
    definition, slow by design, and runs once. The error is the largest difference from float64 on inputs of unit
    variance, rounded to ``precision``; that of the gradients is relative to the largest of each. ``roofline`` is the
    time that moving the inputs and results once takes at the bandwidth of a large copy in the same run. With ``busy``,
    all is measured again while other processes keep a core busy.
    """
    device = chosen_device()
    fast: Backend = "triton" if device == "cuda" else "cpu"
    bandwidth = copy_bandwidth(device)
    rows: list[dict[str, Any]] = []
    for side, number, backward in itertools.product(sides, taps, (False, True)):
        tensors = operation_inputs(side, number, device, DTYPES[precision])
        run = functools.partial(_attend, tensors, backward)
        fits = number * side**2 <= PEER_SAMPLES
        names = (fast, TAP_LOOP, GRID_SAMPLE) if fits else (fast,)
        calls: dict[str, Callable[[], object]] = {name: functools.partial(run, name) for name in names}
        memory = {name: peak_memory(call) for name, call in calls.items()}
        moved = moved_bytes(tensors, backward)
        shared = {"dtype": precision, "side": side, "taps": number, "backward": backward}
        for load in loads(busy):
            title = f"{side} x {side}, {number} taps, {load}"
            with under(load):
                seconds = interleave(calls, repeats, progress=titled(progress, title))
            for name in calls:
                row = {"backend": name, "load": load, **shared, **timing(seconds[name]), "extra_bytes": memory[name]}
                rows.append(row | {"moved_bytes": moved, "roofline": moved / bandwidth})
        if backward and number * side**2 <= ERROR_SAMPLES:
            rows[-len(calls)] |= _errors(tensors, fast)
        if fits:
            began = time.perf_counter()
            extra = peak_memory(functools.partial(run, REFERENCE))
            row = {"backend": REFERENCE, "load": QUIET, **shared, **timing([time.perf_counter() - began])}
            rows.append({**row, "extra_bytes": extra, "moved_bytes": moved, "roofline": moved / bandwidth})
    return Figures(
        suite="op",
        rows=rows,
        bars=operation_bars(rows, device, precision),
        environment={**environment(), "bandwidth": bandwidth},
    )


def operation_inputs(side: int, taps: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value, offsets of a pixel or two and modulations, channels-last as the convolutions make them."""
    generator = torch.Generator().manual_seed(0)
    shapes = (CHANNELS, CHANNELS, CHANNELS, 2 * taps)
    tensors = [torch.randn(1, channels, side, side, generator=generator) for channels in shapes]
    tensors.append(torch.rand(1, taps, side, side, generator=generator))
    return [tensor.to(device, dtype, memory_format=torch.channels_last) for tensor in tensors]


def moved_bytes(tensors: Sequence[Tensor], backward: bool) -> int:
    """What must be read and written at least: inputs and result and, backward, the inputs again and all gradients."""
    inputs, result = sum(tensor.nbytes for tensor in tensors), tensors[2].nbytes
    return 3 * inputs + 2 * result if backward else inputs + result


def by_grid_sample(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, *, kernel_size: int
) -> Tensor:
    """Sampled attention as one writes it with `torch.nn.functional.grid_sample`, the sampling in float32."""
    height, width = value.shape[-2:]
    y, x = sampling_positions(offset.float(), kernel_size)  # (N, K, H, W)
    grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1).flatten(1, 2)  # (N, KH, W, 2)

    def sample(features: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, K, H, W)
        sampled = F.grid_sample(features.float(), grid, align_corners=True).to(features.dtype)
        return sampled.view(*features.shape[:2], -1, height, width) * modulation[:, None]

    affinity = torch.einsum("nchw,nckhw->nkhw", query, sample(key)).softmax(dim=1)
    return torch.einsum("nkhw,nckhw->nchw", affinity, sample(value))


def by_tap_loop(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, *, kernel_size: int
) -> Tensor:
    """Sampled attention tap by tap with `grid_sample`, which holds one sampled map at a time."""
    height, width = value.shape[-2:]
    y, x = sampling_positions(offset.float(), kernel_size)  # (N, K, H, W)
    grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)  # (N, K, H, W, 2)

    def sample(features: Tensor, tap: int) -> Tensor:  # (N, C, H, W), the same
        sampled = F.grid_sample(features.float(), grid[:, tap], align_corners=True).to(features.dtype)
        return sampled * modulation[:, tap : tap + 1]

    taps = range(kernel_size**2)
    affinity = torch.stack([(query * sample(key, tap)).sum(1) for tap in taps], dim=1).softmax(dim=1)
    out = affinity[:, :1] * sample(value, 0)
    for tap in taps[1:]:
        out = out + affinity[:, tap : tap + 1] * sample(value, tap)
    return out


def operation_bars(rows: Sequence[dict[str, Any]], device: str, precision: str) -> list[Bar]:
    """The bars whose maps were measured; on a CPU those of speed and memory are of float32."""
    bars: list[Bar] = []
    for backward, times in SPEED_BARS.items() if device == "cuda" or precision == "fp32" else ():
        key = (256, 25, backward)
        name = "forward and backward" if backward else "forward"
        same = [row for row in rows if (row["side"], row["taps"], row["backward"]) == key]
        for load in dict.fromkeys(row["load"] for row in same):
            found = {row["backend"]: row for row in same if row["load"] == load}
            if TAP_LOOP not in found:
                continue
            loop, whole = found[TAP_LOOP]["median"], found[GRID_SAMPLE]["median"]
            ours = found.get("triton", found.get("cpu", {}))["median"]
            where = "" if load == QUIET else f", {load}"
            for peer, seconds, bound in (("a tap loop", loop, times), ("grid_sample", whole, 1.0)):
                title = f"{name}, times faster than {peer}{where}"
                bars.append(Bar(name=title, value=seconds / ours, sense="at least", bound=bound))
        memory = {row["backend"]: row["extra_bytes"] for row in same}
        if REFERENCE in memory:
            share = memory.get("triton", memory.get("cpu", 0)) / memory[REFERENCE]
            bound = MEMORY_BARS[device][backward]
            bars.append(Bar(name=f"{name}, share of the extra memory", value=share, sense="at most", bound=bound))
    for column, bound in zip(("max_error", "max_gradient_error"), ERROR_BARS[precision], strict=True):
        if values := [row[column] for row in rows if column in row]:
            bars.append(Bar(name=column.replace("_", " "), value=max(values), sense="at most", bound=bound))
    return bars


PEERS = {TAP_LOOP: by_tap_loop, GRID_SAMPLE: by_grid_sample}


def _attend(tensors: list[Tensor], backward: bool, way: str) -> None:
    leaves = [tensor.detach().requires_grad_(backward) for tensor in tensors]
    kernel_size = math.isqrt(tensors[-1].shape[1])
    if way in PEERS:
        out = PEERS[way](*leaves, kernel_size=kernel_size)
    else:
        out = sampled_attention(*leaves, kernel_size=kernel_size, backend=cast(Backend, way))
    if backward:
        torch.autograd.grad(out, leaves, torch.ones_like(out))


def _errors(tensors: list[Tensor], backend: Backend) -> dict[str, float]:
    results = []
    for dtype, path in ((tensors[0].dtype, backend), (torch.float64, "reference")):
        leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in tensors]
        out = sampled_attention(*leaves, kernel_size=math.isqrt(tensors[-1].shape[1]), backend=path)
        results.append((out, torch.autograd.grad(out.sum(), leaves)))
    (out, grads), (expected, targets) = results
    relative = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(grads, targets, strict=True)]
    return {"max_error": (out - expected).abs().max().item(), "max_gradient_error": max(relative)}
