"""DeepLabV3+: ASPP on x5, merged with x2 by concatenation or by a fusion module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.layers import ASPP, ConvNormAct, build_fusion, resize

LOW_WIDTH = 48


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ decoder, x2 .. x5 -> one map at stride 4.

    Without a fusion module, as published: x2 reduced to 48 channels and concatenated with the upsampled ASPP(x5), then
    two 3 x 3 convolutions. With a fusion module, x~2 = fusion(x2, ASPP(x5)), both of the decoder's width, replaces the
    concatenation.
    """

    output_stride = 16
    rates = (6, 12, 18)

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        width, plain = config.width, config.fusion == "none"
        self.context = ASPP(channels[-1], width, rates=self.rates, separable=config.separable)
        self.lateral = ConvNormAct(channels[0], LOW_WIDTH if plain else width)
        self.fusion = None if plain else build_fusion(width, config)
        self.refine = nn.Sequential(
            ConvNormAct(width + LOW_WIDTH if plain else width, width, 3, separable=config.separable),
            ConvNormAct(width, width, 3, separable=config.separable),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode x2 .. x5, each (N, C_s, H_s, W_s), to (N, width, H_2, W_2)."""
        low, high = self.lateral(features[0]), self.context(features[-1])
        if self.fusion is None:
            fused = torch.cat((low, resize(high, (low.shape[-2], low.shape[-1]))), dim=1)
        else:
            fused = self.fusion(low, high)
        refined: Tensor = self.refine(fused)
        return refined
