"""How far a score would move with other images of the same kind: the bootstrap over images."""

from __future__ import annotations

import torch
from torch import Tensor

LEVEL = 0.95


def resample(counts: Tensor, resamples: int, seed: int = 0) -> Tensor:
    """Sums of per-image ``counts`` (n, ...) over ``resamples`` draws of n images with replacement, (resamples, ...).

    float64. One seed draws the same images whatever the counts, so that two models are compared on the same draws.
    """
    images = len(counts)
    generator = torch.Generator().manual_seed(seed)
    # One draw at a time, so that the first of many draws are the draws of few
    draws = [torch.randint(images, (images,), generator=generator) for _ in range(resamples)]
    weights = torch.stack([torch.bincount(draw, minlength=images) for draw in draws]).double()
    return (weights @ counts.reshape(images, -1).double()).reshape(resamples, *counts.shape[1:])


def interval(values: Tensor) -> list[list[float]]:
    """The percentile interval of LEVEL over the first dimension: [low, high] for each entry of ``values`` (B, K).

    Draws that lack the class (nan) are left out; a class that no draw has gets [nan, nan].
    """
    tail = (1 - LEVEL) / 2
    bounds = torch.nanquantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    limits: list[list[float]] = bounds.T.tolist()
    return limits
