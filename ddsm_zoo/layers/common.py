"""The convolution block and the one way to resize."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), bilinear with ``align_corners=False``."""
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that, given one value per channel, uses the running statistics.

    An image-level feature of a batch of one has no variance: torch raises there, and training with
    batches of one would be impossible with the pooled branches of PPM and ASPP.
    """

    def forward(self, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        if self.training and batch * height * width == 1:
            return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(features)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch normalisation and, unless ``act=False``, ReLU; size-preserving.

    ``separable`` splits a 3 x 3 convolution into a depthwise 3 x 3 and a 1 x 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        separable: bool = False,
        act: bool = True,
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        padding = kernel_size // 2 * dilation
        if separable and kernel_size > 1:
            layers["depthwise"] = nn.Conv2d(
                in_channels,
                in_channels,
                kernel_size,
                padding=padding,
                dilation=dilation,
                groups=in_channels,
                bias=False,
            )
            kernel_size, padding, dilation = 1, 0, 1
        layers["conv"] = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False
        )
        layers["norm"] = BatchNorm2d(out_channels)
        if act:
            layers["act"] = nn.ReLU(inplace=True)
        super().__init__(layers)
