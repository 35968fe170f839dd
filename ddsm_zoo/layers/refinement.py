"""Refinement of logits by a finer level of the backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_zoo.layers.common import ConvNormAct, apply_linear, resize

# Channels at the finer level: its maps are four times as large as the decoder's
WIDTH = 32


class Refinement(nn.Module):
    """Residual of the logits at stride 2, computed from the decoder's features and the backbone's at stride 2.

    Features at stride 4 cannot place a line of one or two pixels. A few channels at stride 2 can, and cost little.

    The residual is one of the features in front of the classifier. As the classifier is linear, its part is computed
    behind it, for K classes instead of the decoder's width. It starts at zero: weights trained without it begin with
    their own predictions.

    Args:
        channels: Width of the backbone's level at stride 2.
        width: Width of the decoder's features.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.coarse = ConvNormAct(width, WIDTH)
        self.fine = ConvNormAct(channels, WIDTH)
        self.mix = ConvNormAct(2 * WIDTH, WIDTH, 3, separable=True)
        self.residual = nn.Conv2d(WIDTH, width, 1, bias=False)
        nn.init.zeros_(self.residual.weight)

    def forward(self, features: Tensor, level: Tensor, classifier: nn.Module) -> Tensor:
        """Compute the residual.

        Args:
            features: Features of the decoder (N, width, H/4, W/4).
            level: Features of the backbone (N, channels, H/2, W/2).
            classifier: Classifier from (N, width, H, W) to (N, K, H, W), a linear one.

        Returns:
            Residual to add to the logits, (N, K, H/2, W/2).
        """
        coarse = resize(self.coarse(features), (level.shape[-2], level.shape[-1]))
        mixed = self.mix(torch.cat([coarse, self.fine(level)], dim=1))
        # both layers applied to each channel alone make the kernel (1, K, 1, WIDTH) of their product
        channels = torch.eye(WIDTH, device=mixed.device, dtype=mixed.dtype)[None, :, None]
        kernel = apply_linear(lambda columns: classifier(self.residual(columns)), channels)
        return F.conv2d(mixed, kernel.permute(1, 3, 0, 2))
