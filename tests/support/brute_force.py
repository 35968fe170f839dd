"""Equations 1 to 3 as loops over positions and taps in float64, to hold the fast code against."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor


def bilinear(features: np.ndarray, y: float, x: float) -> np.ndarray:
    """(C, H, W) read at one place: every pixel weighs max(0, 1 - distance) down and across, those outside are 0."""
    _, height, width = features.shape
    down = np.maximum(0.0, 1.0 - np.abs(y - np.arange(height)))
    across = np.maximum(0.0, 1.0 - np.abs(x - np.arange(width)))
    return np.einsum("chw,h,w->c", features, down, across)


def sample(features: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int) -> Tensor:
    """Eq. 1: (N, C, H, W) -> (N, C, K, H, W)."""
    pixels, moves, strengths = (tensor.detach().double().numpy() for tensor in (features, offset, modulation))
    batch, channels, height, width = pixels.shape
    radius = kernel_size // 2
    grid = [(dy, dx) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1)]
    out = np.empty((batch, channels, len(grid), height, width))
    for image, row, column in itertools.product(range(batch), range(height), range(width)):
        for tap, (dy, dx) in enumerate(grid):
            y = row + dy + moves[image, 2 * tap, row, column]
            x = column + dx + moves[image, 2 * tap + 1, row, column]
            strength = strengths[image, tap, row, column]
            out[image, :, tap, row, column] = strength * bilinear(pixels[image], y, x)
    return torch.from_numpy(out)


def sampled_attention(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
) -> Tensor:
    """The sum over taps that Eqs. 2 and 3 share, float64."""
    keys = sample(key, offset, modulation, kernel_size).numpy()
    values = sample(value, offset, modulation, kernel_size).numpy()
    queries = query.detach().double().numpy()
    batch, channels, taps, height, width = values.shape
    out = np.zeros((batch, channels, height, width))
    for image, row, column in itertools.product(range(batch), range(height), range(width)):
        logits = [
            sum(a * b for a, b in zip(queries[image, :, row, column], keys[image, :, tap, row, column], strict=True))
            for tap in range(taps)
        ]
        powers = [math.exp(logit - max(logits)) for logit in logits]
        for tap, power in enumerate(powers):
            out[image, :, row, column] += power / sum(powers) * values[image, :, tap, row, column]
    return torch.from_numpy(out)
