"""How a decoder brings high-level features down to a lower level: (low, high) -> low's size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d, deform_conv2d

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.layers.common import BatchNorm2d, resize
from ddsm_zoo.layers.ddsm import DDSM
from ddsm_zoo.layers.sampler import OffsetConv2d
from ddsm_zoo.ops.traced import sample
from ddsm_zoo.utils.registry import FUSIONS


class UpsampleFusion(nn.Module):
    """low + upsampled high: the plain feature pyramid."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (N, C, H, W), high (N, C, h, w) -> (N, C, H, W)."""
        return low + resize(high, (low.shape[-2], low.shape[-1]))


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


# What a model name's ``fusion`` part stands for: (channels, config) -> a module (low, high) -> low's size
BuildFusion = Callable[[int, ModelConfig], nn.Module]


def register_fusion(name: str, build: BuildFusion) -> None:
    """Make ``build`` a fusion that configs and model names can name, such as ``uper_{name}_r50``.

    Args:
        name: lower-case letters, digits and underscores.
        build: ``build(channels, config)`` gives the module of one level: low (N, C, H, W) and high (N, C, h, w), both
            of ``channels`` features, to (N, C, H, W). A module class with this signature will do.

    Raises:
        ValueError: the name is taken or malformed.
        TypeError: ``build`` cannot be called.
    """
    if not callable(build):
        raise TypeError(f"got {build!r} for the fusion {name!r}, expected a function or class of (channels, config)")
    FUSIONS.register(name, build)


register_fusion("none", lambda _channels, _config: UpsampleFusion())
register_fusion("dcn", lambda channels, _config: DeformableFusion(channels))
register_fusion("ddsm_s", lambda channels, config: DDSM(channels, config.ddsm, channel=False))
register_fusion("ddsm_c", lambda channels, config: DDSM(channels, config.ddsm, spatial=False))
register_fusion("ddsm", lambda channels, config: DDSM(channels, config.ddsm))


def build_fusion(channels: int, config: ModelConfig) -> nn.Module:
    """The fusion module of one level that ``config.fusion`` names. Raises UnregisteredError."""
    fusion: nn.Module = FUSIONS.find(config.fusion)(channels, config)
    return fusion
