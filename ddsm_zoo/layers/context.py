"""Global context on top of the backbone: PPM (PSPNet, UPerNet) and ASPP (DeepLabV3+)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddsm_zoo.layers.common import ConvNormAct, average, stretch


class PPM(nn.Module):
    """Pyramid pooling: x and its averages over 1, 2, 3 and 6 cells a side, fused by a 1 x 1 convolution."""

    bins = (1, 2, 3, 6)

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(ConvNormAct(in_channels, width) for _ in self.bins)
        self.fuse = ConvNormAct(in_channels + len(self.bins) * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add context: (N, C, h, w) -> (N, width, h, w)."""
        size = (x.shape[-2], x.shape[-1])
        pooled = [
            stretch(branch(average(x, bins)), size) for bins, branch in zip(self.bins, self.branches, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat((x, *pooled), dim=1))
        return fused


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1 x 1, three dilated 3 x 3 and the image average, fused by a 1 x 1."""

    def __init__(self, in_channels: int, width: int, *, rates: tuple[int, ...], separable: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(in_channels, width)])
        self.branches.extend(ConvNormAct(in_channels, width, 3, dilation=rate, separable=separable) for rate in rates)
        self.image = ConvNormAct(in_channels, width)
        self.fuse = ConvNormAct((len(rates) + 2) * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add context: (N, C, h, w) -> (N, width, h, w)."""
        image = stretch(self.image(average(x, 1)), (x.shape[-2], x.shape[-1]))
        fused: Tensor = self.fuse(torch.cat((*(branch(x) for branch in self.branches), image), dim=1))
        return fused
