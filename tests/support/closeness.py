"""Tolerances that follow from the arithmetic, for float32 results whose rounding depends on the processor."""

from __future__ import annotations

import torch


def summation_error(terms: int, magnitude: float, dtype: torch.dtype = torch.float32) -> float:
    """Bound on the difference between two sums of the same terms, taken in any two orders.

    Each sum is off by at most (terms - 1) * (eps / 2) * magnitude (Higham, Accuracy and Stability of Numerical
    Algorithms, section 4.2), and each term may be rounded once before. Prefer float64 where the code under test takes
    it: no bound is needed there.

    Args:
        terms: Number of terms of a sum. For a sum of sums, add the terms of the inner and of the outer sum.
        magnitude: Sum of the absolute values of all terms. For weights that add up to 1, the largest absolute value.
        dtype: Type that the sum is taken in.

    Returns:
        The absolute difference that rounding alone can make.
    """
    return terms * torch.finfo(dtype).eps * magnitude
