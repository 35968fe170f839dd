"""What is measured: turns, peaks and growth, against cases whose answer is known."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.speed import measure
from benchmarks.speed.measure import (
    bf16_unit,
    copy_bandwidth,
    environment,
    exponent,
    interleave,
    processor,
)

X86 = """processor\t: 0
model name\t: AMD EPYC 9R14 96-Core Processor
flags\t\t: fpu vme avx512f avx512_bf16 xsaves
bugs\t\t: bf16
"""


def test_candidates_take_turns_after_the_warmup() -> None:
    calls: list[str] = []
    ticks: list[tuple[int, int]] = []
    seconds = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        3,
        warmup=2,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert calls == ["a", "b"] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert ticks == [(step, 10) for step in range(1, 11)]


def test_seconds_are_those_of_the_call() -> None:
    seconds = interleave({"short": lambda: None, "long": lambda: time.sleep(0.05)}, 2, warmup=0)
    assert min(seconds["long"]) >= 0.05
    assert min(seconds["short"]) < 0.05


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats is 0, expected at least 1"):
        interleave({}, 0)


PEAKS = """
import torch
from benchmarks.speed.measure import peak_memory

numbers = 16 * 2**20  # 64 MiB in float32

def one_after_the_other():
    for _ in range(5):
        torch.ones(numbers)

def together():
    assert len([torch.ones(numbers) for _ in range(5)]) == 5

print(*(peak_memory(call) / (4 * numbers) for call in (one_after_the_other, together, one_after_the_other)))
"""


def test_peak_counts_what_is_held_together() -> None:
    """In a process of its own: what other tests left to the allocator counts as memory in use."""
    root = Path(__file__).resolve().parents[3]
    ran = subprocess.run([sys.executable, "-c", PEAKS], cwd=root, capture_output=True, text=True, check=True)
    first, all_at_once, again = map(float, ran.stdout.split())
    assert first == pytest.approx(1, rel=0.1)
    assert all_at_once == pytest.approx(5, rel=0.1)
    assert again == pytest.approx(1, rel=0.1)  # the peak before is forgotten


def test_bandwidth_counts_reading_and_writing() -> None:
    size = 2**24
    source, target = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    taken = interleave({"copy": lambda: target.copy_(source)}, 9)["copy"]
    found = copy_bandwidth("cpu", size, repeats=9)
    # other work on the machine may come between, but not make a copy several times faster
    assert 0.1 * 2 * size / max(taken) < found < 10 * 2 * size / min(taken)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_growth_is_the_slope_in_logarithms(power: float) -> None:
    pixels = [256**2, 512**2, 1024**2]
    assert exponent(pixels, [3e-7 * count**power for count in pixels]) == pytest.approx(power)


def test_growth_needs_two_sizes() -> None:
    with pytest.raises(ValueError, match="got 1 sizes, expected at least two"):
        exponent([64, 64], [1.0, 2.0])


def test_environment_names_what_a_reader_needs() -> None:
    found = environment()
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["cpu"]
    assert found["bf16"] in (None, "amx_bf16", "avx512_bf16", "bf16")


def test_a_folder_that_is_called_like_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "not_installed").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(measure, "_PACKAGES", ("torch", "not_installed"))
    assert environment()["versions"].keys() == {"python", "torch"}


def test_what_linux_says_of_a_processor() -> None:
    assert processor(X86) == "AMD EPYC 9R14 96-Core Processor"
    assert bf16_unit(X86) == "avx512_bf16"
    assert bf16_unit(X86.replace("avx512_bf16", "avx512_vnni")) is None
    assert bf16_unit("Features\t: fp asimd i8mm bf16 dgh\n") == "bf16"
    assert bf16_unit("") is None
    assert processor("")
