"""What a suite reports: rows of what was measured, and the bars that they answer."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from benchmarks.speed.measure import environment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SuiteProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bound that a figure is held to: ``value`` is to be at most, or at least, ``bound``.

    ``unmeasured`` says why the figure does not count on this machine, where it does not.
    """

    name: str
    value: float
    sense: Literal["at most", "at least"]
    bound: float
    unmeasured: str | None = None

    @property
    def holds(self) -> bool | None:
        """None where it was not measured."""
        if self.unmeasured is not None:
            return None
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


def chosen_device() -> str:
    """Where everything is measured: on a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def timing(seconds: Sequence[float]) -> dict[str, Any]:
    """The columns of a row that was timed."""
    return {"median": statistics.median(seconds), "seconds": list(seconds)}


def titled(progress: SuiteProgress | None, title: str) -> Callable[[int, int], None] | None:
    """Progress within a part of the suite."""
    return functools.partial(progress, title) if progress else None
