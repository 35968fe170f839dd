"""Paired differences: t interval, two-sided test, and the two one-sided tests for equivalence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95
ALPHA = 0.05
MARGIN = 0.6  # in percentage points: differences below it do not matter in practice


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What n paired differences say. Without at least two, only the mean is a number."""

    n: int
    mean: float
    low: float  # of the interval at `LEVEL`
    high: float
    p: float  # two-sided, against no difference
    p_equivalent: float  # the larger of the two one-sided tests against +-`MARGIN`


def paired(differences: Sequence[float]) -> Paired:
    """Summarize paired differences in percentage points. Raises ValueError for none."""
    if not differences:
        raise ValueError("got 0 differences, expected at least 1")
    n, mean = len(differences), statistics.fmean(differences)
    if n == 1:
        return Paired(n=n, mean=mean, low=math.nan, high=math.nan, p=math.nan, p_equivalent=math.nan)
    error = statistics.stdev(differences) / math.sqrt(n)
    half = float(student.ppf((1 + LEVEL) / 2, n - 1)) * error
    return Paired(
        n=n,
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=2 * _tail(abs(mean), error, n - 1),
        p_equivalent=_tail(MARGIN - abs(mean), error, n - 1),
    )


def holm(values: Sequence[float]) -> list[float]:
    """p values of tests that are read together, each adjusted by Holm's method. nan stays nan and does not count."""
    order = sorted((index for index, p in enumerate(values) if not math.isnan(p)), key=lambda index: values[index])
    adjusted = [math.nan] * len(values)
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - position) * values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(result: Paired, p_adjusted: float) -> str:
    """One word: equivalent, help, harm or undecided. ``p_adjusted`` is `Paired.p` after `holm`."""
    if result.p_equivalent < ALPHA:
        return "equivalent"
    if p_adjusted < ALPHA:
        return "help" if result.mean > 0 else "harm"
    return "undecided"


def _tail(distance: float, error: float, freedom: int) -> float:
    """Probability of a t statistic above ``distance / error``; differences that are all equal leave no doubt."""
    if error == 0:
        return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0
    return float(student.sf(distance / error, freedom))
