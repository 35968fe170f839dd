"""How a decoder brings high-level features down to a lower level: (low, high) -> low's size."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from ddsm_zoo.config import DDSMConfig, Fusion
from ddsm_zoo.layers.common import BatchNorm2d, resize
from ddsm_zoo.layers.ddsm import DDSM


class UpsampleFusion(nn.Module):
    """low + upsampled high: the plain feature pyramid."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> (N, C, H, W)."""
        return low + resize(high, (low.shape[-2], low.shape[-1]))


class DeformableFusion(nn.Module):
    """low + a 3 x 3 deformable convolution of upsampled high: the DCN rows of Table 1.

    As in DCN (v1), a 3 x 3 convolution, starting at zero, predicts the offsets and there is no modulation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(channels, 2 * 9, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)
        self.conv = DeformConv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = BatchNorm2d(channels)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> (N, C, H, W)."""
        high = resize(high, (low.shape[-2], low.shape[-1]))
        # torchvision's kernel has no half precision on the CPU, and offsets in half precision would miss whole pixels
        kind = high.device.type
        full = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with full:
            high = high.to(self.conv.weight.dtype)
            moved = self.conv(high, self.offset(high))
        out: Tensor = low + self.norm(moved)
        return out


def build_fusion(fusion: Fusion, channels: int, config: DDSMConfig) -> nn.Module:
    """The fusion module that a model name's ``fusion`` part stands for."""
    if fusion == "none":
        return UpsampleFusion()
    if fusion == "dcn":
        return DeformableFusion(channels)
    return DDSM(channels, config, spatial=fusion != "ddsm_c", channel=fusion != "ddsm_s")
