"""Time and memory of callables that are to be compared, measured side by side in one run."""

from __future__ import annotations

import ctypes
import importlib.metadata
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# What processors call the instructions that multiply bfloat16; the others convert to float32 and back
_BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")
_PACKAGES = ("torch", "torchvision", "timm", "triton", "segmentation_models_pytorch")


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, ``repeats`` for each candidate, after ``warmup`` calls that are not counted.

    The candidates take turns, so that whatever else the machine does slows all of them alike. ``progress`` gets how
    many of the calls are done and how many there are. Raises ValueError for fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    total = (warmup + repeats) * len(candidates)
    for turn in range(warmup + repeats):
        for position, (name, call) in enumerate(candidates.items()):
            _synchronize()
            began = time.perf_counter()
            call()
            _synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
            if progress:
                progress(turn * len(candidates) + position + 1, total)
    return seconds


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes in use during ``call`` beyond those before it, at the worst moment: torch's on a GPU, else the process's.

    On the CPU it is the kernel's own record of resident memory, since torch's profiler spends gigabytes on long calls.
    Raises LookupError where there is neither a GPU nor Linux.
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        raise LookupError("memory is measured on Linux or on a GPU")
    # What the allocator keeps for later would hide what the call needs
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    """A figure of this process in bytes, by its name in the kernel's status file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def copy_bandwidth(device: str, size: int = 2**27, repeats: int = 5) -> float:
    """Bytes a second that a copy of ``size`` bytes moves on ``device``, read and written together."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, repeats)
    return 2 * size / statistics.median(seconds["copy"])


def exponent(pixels: Sequence[int], seconds: Sequence[float]) -> float:
    """The b of seconds = a pixels**b that fits best in logarithms: 1 is linear growth.

    Raises ValueError for fewer than two sizes.
    """
    if len(set(pixels)) < 2:
        raise ValueError(f"got {len(set(pixels))} sizes, expected at least two to see growth")
    line = statistics.linear_regression([math.log(count) for count in pixels], [math.log(time) for time in seconds])
    return line.slope


def environment() -> dict[str, Any]:
    """What a reader needs to know of the machine: processor, its bfloat16 unit, threads, GPU and versions."""
    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    described = _cpuinfo()
    return {
        "cpu": processor(described),
        "bf16": bf16_unit(described),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version(), **versions},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor(cpuinfo: str) -> str:
    """The name of the processor that Linux describes so, or what Python knows of it."""
    models = _entries(cpuinfo, "model name")
    return models[0] if models else platform.processor() or platform.machine()


def bf16_unit(cpuinfo: str) -> str | None:
    """The instructions with which the processor that Linux describes so multiplies bfloat16, None where it has none."""
    features = {word for name in ("flags", "Features") for line in _entries(cpuinfo, name) for word in line.split()}
    return next((unit for unit in _BF16_UNITS if unit in features), None)


def _entries(cpuinfo: str, name: str) -> list[str]:
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
