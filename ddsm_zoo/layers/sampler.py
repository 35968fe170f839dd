"""The dynamic sampler F of Eq. 1."""

from __future__ import annotations

import math

from torch import Tensor, nn


class DynamicSampler(nn.Module):
    """Chooses, for each position of a feature map, where ``samples`` taps read it and how strongly (Eq. 1).

    A 1 x 1 convolution predicts an offset in pixels and a modulation per tap of the k x k grid. It starts at zero:
    the plain grid, every tap at modulation 1/2, as in DCNv2.
    """

    def __init__(self, channels: int, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.kernel_size = math.isqrt(samples)
        self.predict = nn.Conv2d(channels, 3 * samples, 1)
        nn.init.zeros_(self.predict.weight)
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> offset (N, 2K, H, W), (dy, dx) per tap, and modulation (N, K, H, W) in 0..1."""
        offset, modulation = self.predict(features).split((2 * self.samples, self.samples), dim=1)
        return offset, modulation.sigmoid()
