"""Parameters and multiply-adds of an architecture, counted without building it in memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.models.segmenter import Segmenter


class Complexity(NamedTuple):
    """``params`` and, for one image, ``multiply_adds``."""

    params: int
    multiply_adds: int


def complexity(config: ModelConfig, size: tuple[int, int] = (1024, 1024)) -> Complexity:
    """Count on the meta device what ``torch.utils.flop_counter`` counts, for an (H, W) image at inference.

    Convolutions and matrix products count, the products of the sampled attention among them; normalisation,
    activations and interpolation (the bilinear sampling too) do not. The auxiliary head is left out.
    """
    with torch.device("meta"):
        model = Segmenter(dataclasses.replace(config, auxiliary=False))
    return count(model, (config.in_chans, *size))


def count(model: nn.Module, shape: tuple[int, int, int]) -> Complexity:
    """The same for any network on the meta device and an image of ``shape`` (C, H, W)."""
    counter = FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv2d_flops},
    )
    with counter, torch.inference_mode():
        model.eval()(torch.empty(1, *shape, device="meta"))
    params = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(params=params, multiply_adds=counter.get_total_flops() // 2)


def _deform_conv2d_flops(
    _: tuple[int, ...], weight_shape: tuple[int, ...], *__: Any, out_shape: tuple[int, ...], **___: Any
) -> int:
    """As for an ordinary convolution: 2 * kernel elements for each output element."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])
