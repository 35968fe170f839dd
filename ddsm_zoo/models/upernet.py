"""UPerNet: a feature pyramid under a pyramid pooling module, with any fusion module in the top-down path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.layers import PPM, ConvNormAct, build_fusion, resize
from ddsm_zoo.layers.fusion import UpsampleFusion

TOP_DOWN = (4, 3, 2)


class UPerNet(nn.Module):
    """UPerNet decoder, x2 .. x5 -> one map at stride 4 (section 2.2, "Plugin into Two Architectures").

    At the stages in ``config.fused_stages`` the fusion module replaces the upsampling. It also replaces the 3 x 3
    smoothing convolution after it, unless ``config.smoothing`` keeps that. The published complexity implies this
    (docs/method.md).
    """

    output_stride = 32

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.context = PPM(channels[-1], width)
        self.laterals = nn.ModuleList(ConvNormAct(channels[stage - 2], width) for stage in TOP_DOWN)
        fused = [config.fusion != "none" and stage in config.fused_stages for stage in TOP_DOWN]
        self.fusions = nn.ModuleList(build_fusion(width, config) if here else UpsampleFusion() for here in fused)
        smoothed = {"all": [True] * len(fused), "plain": [not here for here in fused], "none": [False] * len(fused)}
        self.smoothings = nn.ModuleList(
            ConvNormAct(width, width, 3, separable=config.separable) if here else nn.Identity()
            for here in smoothed[config.smoothing]
        )
        self.fuse = ConvNormAct(4 * width, width, 3, separable=config.separable)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode x2 .. x5, each (N, C_s, H_s, W_s), to (N, width, H_2, W_2)."""
        top = self.context(features[-1])
        outputs = [top]
        for stage, lateral, fusion, smoothing in zip(
            TOP_DOWN, self.laterals, self.fusions, self.smoothings, strict=True
        ):
            top = fusion(lateral(features[stage - 2]), top)
            outputs.append(smoothing(top))
        *coarse, finest = outputs
        size = (finest.shape[-2], finest.shape[-1])
        fused: Tensor = self.fuse(torch.cat([*(resize(output, size) for output in coarse), finest], dim=1))
        return fused
