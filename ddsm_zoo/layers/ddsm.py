"""Dynamic Dual Sampling Module (section 2.2 of the paper)."""

from __future__ import annotations

from torch import Tensor, nn

from ddsm_zoo.config import DDSMConfig
from ddsm_zoo.layers.affinity import ChannelAffinity, SpatialAffinity


class DDSM(nn.Module):
    """Dynamic Dual Sampling Module: low + S(low, high) + K(low, high), as in Fig. 3.

    The attribute ``spatial`` is S and ``channel`` is K. A half that is left out is None.

    Args:
        channels: Channels of low and high.
        config: Sizes of the module.
        spatial: Include S. Leave one half out for the ablation of Table 1.
        channel: Include K.
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
        """Fuse two levels of features.

        Args:
            low: Low-level features (N, C, H, W).
            high: High-level features (N, C, h, w).

        Returns:
            Fused features (N, C, H, W).
        """
        out = low
        for affinity in (self.spatial, self.channel):
            if affinity is not None:
                term = affinity(low, high)
                # second sum in place: only this function holds the first sum, but a hook may hold a module's output
                out = low + term if out is low else out.add_(term)
        return out
