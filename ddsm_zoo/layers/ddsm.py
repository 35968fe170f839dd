"""The Dynamic Dual Sampling Module (section 2.2 of the paper)."""

from __future__ import annotations

from torch import Tensor, nn

from ddsm_zoo.config import DDSMConfig
from ddsm_zoo.layers.affinity import ChannelAffinity, SpatialAffinity


class DDSM(nn.Module):
    """low + S(low, high) + K(low, high); Fig. 3, with either half left out for the ablation of Table 1.

    ``spatial`` is S and ``channel`` is K, None for a half that is left out.
    """

    def __init__(self, channels: int, config: DDSMConfig, *, spatial: bool = True, channel: bool = True) -> None:
        super().__init__()
        self.spatial = (
            SpatialAffinity(channels, samples=config.pixels, width=config.width, positions=config.positions)
            if spatial
            else None
        )
        self.channel = (
            ChannelAffinity(channels, samples=config.channels, width=config.width, pool=config.pool)
            if channel
            else None
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> (N, C, H, W)."""
        out = low
        for affinity in (self.spatial, self.channel):
            if affinity is not None:
                term = affinity(low, high)
                # the second sum in place: the first is nobody else's, where what a module returned may be a hook's
                out = low + term if out is low else out.add_(term)
        return out
