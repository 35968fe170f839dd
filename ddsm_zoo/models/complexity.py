"""Parameters and multiply-adds of an architecture, counted without allocating it."""

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
    """Number of parameters ``params`` and, for one image, of multiply-adds ``multiply_adds``."""

    params: int
    multiply_adds: int


def complexity(config: ModelConfig, size: tuple[int, int] = (1024, 1024)) -> Complexity:
    """Count parameters and multiply-adds for an (H, W) image at inference, by ``torch.utils.flop_counter``.

    The count runs on the meta device. It includes convolutions and matrix products, among them those of the sampled
    attention. It excludes normalization, activations and interpolation (the bilinear sampling too), and the auxiliary
    head.

    Args:
        config: Architecture.
        size: Size (H, W) of the image in pixels.

    Returns:
        Number of parameters and of multiply-adds.

    Examples:
        >>> import ddsm_zoo
        >>> complexity(ddsm_zoo.model_config("uper_ddsm_r18"), (256, 256)).params == sum(
        ...     p.numel() for p in ddsm_zoo.create_model("uper_ddsm_r18", pretrained_backbone=False).parameters()
        ... )
        True
    """
    with torch.device("meta"):
        model = Segmenter(dataclasses.replace(config, auxiliary=False))
    return count(model, (config.in_chans, *size))


def count(model: nn.Module, shape: tuple[int, int, int]) -> Complexity:
    """Count the same for any network on the meta device and an image of ``shape`` (C, H, W)."""
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
    """Count as for an ordinary convolution: 2 * kernel elements for each output element."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])
