"""How a decoder brings high-level features down to a lower level: (low, high) -> low's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d, deform_conv2d

from ddsm_zoo.config import DDSMConfig, Fusion
from ddsm_zoo.layers.common import BatchNorm2d, resize
from ddsm_zoo.layers.ddsm import DDSM
from ddsm_zoo.layers.sampler import OffsetConv2d
from ddsm_zoo.ops.traced import sample


class UpsampleFusion(nn.Module):
    """low + upsampled high: the plain feature pyramid."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> (N, C, H, W)."""
        return low + resize(high, (low.shape[-2], low.shape[-1]))


class LateralFusion(nn.Module):
    """low alone: no top-down path. The control that shows what a fusion adds to the decoder around it."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:  # noqa: ARG002 - every fusion takes both
        """low (N, C, H, W), high (N, C, h, w) -> low."""
        return low


class FlowAlignment(nn.Module):
    """low + high warped by a learned flow: the flow alignment module of SFNet (Li et al., ECCV 2020).

    A 3 x 3 convolution over both maps, reduced to half their width, predicts one displacement per position of low.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce_low = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.reduce_high = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.flow = nn.Conv2d(2 * (channels // 2), 2, 3, padding=1, bias=False)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> (N, C, H, W)."""
        size = (low.shape[-2], low.shape[-1])
        pair = torch.cat((self.reduce_low(low), resize(self.reduce_high(high), size)), dim=1)
        # one tap, displaced in cells of low, and clamped to the border as the flow of SFNet is
        return low + _warp(resize(high, size), self.flow(pair))


def _warp(features: Tensor, flow: Tensor) -> Tensor:
    """Read (N, C, H, W) at every position plus ``flow`` (N, 2, H, W), (dy, dx) in cells; the border goes on outside."""
    height, width = features.shape[-2], features.shape[-1]
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 0]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 1]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)  # (N, H, W, 2)
    warped = F.grid_sample(features.to(flow.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return warped.to(features.dtype)


class FullDeformConv2d(DeformConv2d):  # type: ignore[misc]  # torchvision ships no types
    """Deformable convolution in float32 at least, by torchvision's kernel on GPUs.

    On the CPU that one has no half precision, and takes seven times as long as reading the taps first.
    """

    def forward(self, features: Tensor, offset: Tensor) -> Tensor:
        """(N, C, H, W) and (N, 2K, H, W) -> (N, D, H, W), in the type of ``features``."""
        full = torch.promote_types(features.dtype, torch.float32)
        if features.device.type == "cpu" or torch.compiler.is_compiling():
            return self._of_samples(features.to(full), offset.to(full)).to(features.dtype)
        weight, bias = self.weight.to(full), None if self.bias is None else self.bias.to(full)
        out: Tensor = deform_conv2d(
            features.to(full), offset.to(full), weight, bias, self.stride, self.padding, self.dilation
        )
        return out.to(features.dtype)

    def _of_samples(self, features: Tensor, offset: Tensor) -> Tensor:
        """The same in operations that ONNX has: a 1 x 1 convolution of what the taps read."""
        samples = sample(features, offset, self.kernel_size[0])  # (N, C, K, H, W)
        weight = self.weight.to(features.dtype).flatten(1)[..., None, None]  # (D, CK, 1, 1)
        return F.conv2d(samples.flatten(1, 2), weight, None if self.bias is None else self.bias.to(features.dtype))


class DeformableFusion(nn.Module):
    """low + a 3 x 3 deformable convolution of upsampled high: the DCN rows of Table 1.

    As in DCN (v1), a 3 x 3 convolution, starting at zero, predicts the offsets and there is no modulation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = OffsetConv2d(channels, 9, modulated=False, kernel_size=3)
        self.conv = FullDeformConv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = BatchNorm2d(channels)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> (N, C, H, W)."""
        high = resize(high, (low.shape[-2], low.shape[-1]))
        out: Tensor = low + self.norm(self.conv(high, self.offset(high)))
        return out


def build_fusion(fusion: Fusion, channels: int, config: DDSMConfig) -> nn.Module:
    """The fusion module that a model name's ``fusion`` part stands for."""
    if fusion == "none":
        return UpsampleFusion()
    if fusion == "laterals":
        return LateralFusion()
    if fusion == "fam":
        return FlowAlignment(channels)
    if fusion == "dcn":
        return DeformableFusion(channels)
    return DDSM(channels, config, spatial=fusion != "ddsm_c", channel=fusion != "ddsm_s")
