"""Tolerances that follow from the arithmetic, for float32 results whose rounding depends on the processor."""

from __future__ import annotations

import torch


def rounding_error(roundings: int, magnitude: float, dtype: torch.dtype = torch.float32) -> float:
    """Bound on the difference that rounding makes between two ways to compute the same number.

    A rounding is off by at most half an epsilon of what it rounds. So two sums of n terms, each taken in any order,
    differ by at most n epsilons of the sum of the absolute values (Higham, Accuracy and Stability of Numerical
    Algorithms, section 4.2): n - 1 additions each, and one rounding of each term before. Prefer float64 where the code
    under test computes in it: it needs no bound.

    Args:
        roundings: Roundings on the way to the number. For a sum, its number of terms; for a sum of sums, the terms of
            the inner sum and of the outer sum, added.
        magnitude: Largest absolute value that is rounded. For a sum, the sum of the absolute values of its terms; for
            a weighted mean, the largest absolute value.
        dtype: Type of the computation.

    Returns:
        The largest absolute difference.
    """
    return roundings * torch.finfo(dtype).eps * magnitude
