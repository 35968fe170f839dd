"""Paired differences, against scipy's own tests and an example worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.evidence.paired import MARGIN, Paired, holm, paired, verdict


@pytest.mark.parametrize("seed", range(8))
def test_interval_and_p_values_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.uniform(-2, 2), rng.uniform(0.1, 1), rng.integers(2, 12))
    result = paired(values.tolist())
    expected = stats.ttest_rel(values + 50, np.full_like(values, 50))
    interval = expected.confidence_interval(0.95)
    assert result.mean == pytest.approx(values.mean())
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.p == pytest.approx(expected.pvalue)
    above = stats.ttest_1samp(values, -MARGIN, alternative="greater").pvalue
    below = stats.ttest_1samp(values, MARGIN, alternative="less").pvalue
    assert result.p_equivalent == pytest.approx(max(above, below))


def test_by_hand() -> None:
    """Mean 1, standard deviation 1, n = 3: t = sqrt(3) with 2 degrees of freedom, whose 97.5 % quantile is 4.303."""
    result = paired([0.0, 1.0, 2.0])
    assert result.high - 1 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    t = math.sqrt(3)
    assert result.p == pytest.approx(1 - t / math.sqrt(2 + t**2))  # the distribution function for 2 degrees of freedom


def test_one_pair_has_no_interval_and_decides_nothing() -> None:
    result = paired([3.0])
    assert result.mean == 3.0
    assert all(math.isnan(value) for value in (result.low, result.high, result.p, result.p_equivalent))
    assert verdict(result, result.p) == "undecided"
    with pytest.raises(ValueError, match="0 differences"):
        paired([])


def test_differences_that_are_all_equal_leave_no_doubt() -> None:
    small, large, none = (paired([value] * 3) for value in (0.2, -2.0, 0.0))
    assert (small.low, small.high, small.p, small.p_equivalent) == (pytest.approx(0.2), pytest.approx(0.2), 0, 0)
    assert (large.p, large.p_equivalent, verdict(large, large.p)) == (0, 1, "harm")
    assert (none.p, verdict(none, none.p)) == (1, "equivalent")


def test_holm_by_hand() -> None:
    """The example of Holm's method with four hypotheses: 0.01, 0.04, 0.03, 0.005 -> 0.03, 0.06, 0.06, 0.02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.03, math.nan])
    assert adjusted[0] == 0.03
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize(
    ("mean", "p", "p_equivalent", "expected"),
    [
        (1.0, 0.01, 0.9, "help"),
        (-1.0, 0.01, 0.9, "harm"),
        (1.0, 0.2, 0.5, "undecided"),
        (0.1, 0.5, 0.01, "equivalent"),
        (0.3, 0.01, 0.01, "equivalent"),  # certain, and too small to matter
    ],
)
def test_verdicts(mean: float, p: float, p_equivalent: float, expected: str) -> None:
    result = Paired(n=6, mean=mean, low=mean - 1, high=mean + 1, p=p, p_equivalent=p_equivalent)
    assert verdict(result, p) == expected
