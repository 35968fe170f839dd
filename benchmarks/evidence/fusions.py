"""Fusions to measure against: no top-down path at all, a published gain, and other readings of the paper's module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.layers import register_fusion, resize
from ddsm_zoo.layers.affinity import ChannelAffinity, SpatialAffinity
from ddsm_zoo.layers.ddsm import DDSM
from ddsm_zoo.layers.sampler import DynamicSampler
from ddsm_zoo.ops.reference import sample
from ddsm_zoo.utils.registry import FUSIONS


class LateralFusion(nn.Module):
    """low alone. The control that shows what a top-down path adds to the decoder around it."""

    def __init__(self, _channels: int, _config: ModelConfig) -> None:
        super().__init__()

    def forward(self, low: Tensor, _high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> low."""
        return low


class FlowAlignment(nn.Module):
    """low + high warped by a learned flow: the flow alignment module of SFNet (Li et al., ECCV 2020).

    A 3 x 3 convolution over both maps, reduced to half their width, predicts one displacement per position of low.
    """

    def __init__(self, channels: int, _config: ModelConfig) -> None:
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


def unscale(channel: ChannelAffinity) -> None:
    """Undo our 1 / a: the logits of Eq. 3 as it is written."""
    channel.alpha.register_forward_hook(lambda _, __, query: query * channel.pool)


def unscaled_ddsm(channels: int, config: ModelConfig) -> DDSM:
    """Build DDSM with Eq. 3 as it is written."""
    module = DDSM(channels, config.ddsm)
    assert module.channel is not None
    unscale(module.channel)
    return module


class TwoSamplerAffinity(SpatialAffinity):
    """Eq. 2 in which the value has taps of its own, predicted from the value. Fig. 3a could be read so."""

    def __init__(self, channels: int, *, samples: int, width: int, positions: int) -> None:
        super().__init__(channels, samples=samples, width=width, positions=positions)
        self.value_sampler = DynamicSampler(width, samples)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> x_Sout (N, C, H, W)."""
        query, key, value = self.project(low, high)
        side = self.sampler.kernel_size
        offset, modulation = self.sampler(key)
        logits = torch.einsum("nchw,nckhw->nkhw", query, sample(key, offset, modulation, side))
        offset, modulation = self.value_sampler(value)
        sampled = sample(value, offset, modulation, side)
        gathered = torch.einsum("nkhw,nckhw->nchw", logits.softmax(dim=1), sampled)
        projected: Tensor = self.out(gathered)
        return projected


def two_sampler_ddsm(channels: int, config: ModelConfig) -> DDSM:
    """Build DDSM with a second sampler in S."""
    module, sizes = DDSM(channels, config.ddsm), config.ddsm
    module.spatial = TwoSamplerAffinity(channels, samples=sizes.pixels, width=sizes.width, positions=sizes.positions)
    return module


CONTROLS = {
    "laterals": LateralFusion,
    "fam": FlowAlignment,
    "ddsm_unscaled": unscaled_ddsm,
    "ddsm_two_samplers": two_sampler_ddsm,
}


def register_controls() -> None:
    """Make the controls fusions that arms can name, once."""
    for name, fusion in CONTROLS.items():
        if name not in FUSIONS:
            register_fusion(name, fusion)
