"""Fusion modules that bring high-level features down to a lower level: (low, high) -> low's size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d, deform_conv2d

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.errors import ArgumentTypeError
from ddsm_zoo.layers.common import BatchNorm2d, resize
from ddsm_zoo.layers.ddsm import DDSM
from ddsm_zoo.layers.sampler import OffsetConv2d
from ddsm_zoo.ops.traced import sample
from ddsm_zoo.utils.registry import FUSIONS


class UpsampleFusion(nn.Module):
    """Plain feature pyramid: low + upsampled high."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Fuse low (N, C, H, W) and high (N, C, h, w) to (N, C, H, W)."""
        return low + resize(high, (low.shape[-2], low.shape[-1]))


class FullDeformConv2d(DeformConv2d):  # type: ignore[misc]  # torchvision ships no types
    """Deformable convolution in float32 or higher, by torchvision's kernel on GPUs.

    On the CPU that kernel has no half precision, and takes seven times as long as sampling the taps first.
    """

    def forward(self, features: Tensor, offset: Tensor) -> Tensor:
        """Convolve (N, C, H, W) at offsets (N, 2K, H, W) to (N, D, H, W), in the dtype of ``features``."""
        full = torch.promote_types(features.dtype, torch.float32)
        if features.device.type == "cpu" or torch.compiler.is_compiling():
            return self._of_samples(features.to(full), offset.to(full)).to(features.dtype)
        weight, bias = self.weight.to(full), None if self.bias is None else self.bias.to(full)
        out: Tensor = deform_conv2d(
            features.to(full), offset.to(full), weight, bias, self.stride, self.padding, self.dilation
        )
        return out.to(features.dtype)

    def _of_samples(self, features: Tensor, offset: Tensor) -> Tensor:
        """Compute the same in operations that ONNX has: a 1 x 1 convolution of the sampled taps."""
        samples = sample(features, offset, self.kernel_size[0])  # (N, C, K, H, W)
        weight = self.weight.to(features.dtype).flatten(1)[..., None, None]  # (D, CK, 1, 1)
        return F.conv2d(samples.flatten(1, 2), weight, None if self.bias is None else self.bias.to(features.dtype))


class DeformableFusion(nn.Module):
    """Sum of low and a 3 x 3 deformable convolution of upsampled high: the DCN rows of Table 1.

    As in DCN (v1), a 3 x 3 convolution that starts at zero predicts the offsets, and there is no modulation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = OffsetConv2d(channels, 9, modulated=False, kernel_size=3)
        self.conv = FullDeformConv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = BatchNorm2d(channels)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Fuse low (N, C, H, W) and high (N, C, h, w) to (N, C, H, W)."""
        high = resize(high, (low.shape[-2], low.shape[-1]))
        out: Tensor = low + self.norm(self.conv(high, self.offset(high)))
        return out


# Registered builders, by the ``fusion`` part of a model name: (channels, config) -> a module (low, high) -> low's size
BuildFusion = Callable[[int, ModelConfig], nn.Module]


def register_fusion(name: str, build: BuildFusion) -> None:
    """Register ``build`` as a fusion for configs and model names, such as ``uper_{name}_r50``.

    Args:
        name: Lower-case letters, digits and underscores.
        build: Function ``build(channels, config)`` that returns the module of one level. The module maps low (N, C, H,
            W) and high (N, C, h, w), both of ``channels`` channels, to (N, C, H, W). You can pass a module class with
            this signature.

    Raises:
        ValueError: The name is taken or malformed.
        TypeError: ``build`` is not callable.

    See docs/extending.md for an example.
    """
    if not callable(build):
        raise ArgumentTypeError(
            f"got {build!r} for the fusion {name!r}, expected a function or class of (channels, config)",
            name=name,
            got=build,
        )
    FUSIONS.register(name, build)


register_fusion("none", lambda _channels, _config: UpsampleFusion())
register_fusion("dcn", lambda channels, _config: DeformableFusion(channels))
register_fusion("ddsm_s", lambda channels, config: DDSM(channels, config.ddsm, channel=False))
register_fusion("ddsm_c", lambda channels, config: DDSM(channels, config.ddsm, spatial=False))
register_fusion("ddsm", lambda channels, config: DDSM(channels, config.ddsm))


def build_fusion(channels: int, config: ModelConfig) -> nn.Module:
    """Build the fusion module of one level that ``config.fusion`` names. Raises UnregisteredError."""
    fusion: nn.Module = FUSIONS.find(config.fusion)(channels, config)
    return fusion
