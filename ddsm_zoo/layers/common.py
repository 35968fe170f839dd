"""Convolution block and the shared functions to resize, average and stretch maps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_zoo.layers import tiles
from ddsm_zoo.layers.tiles import Span
from ddsm_zoo.ops.traced import is_traced


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, h, w) to (N, C, H, W), bilinear with ``align_corners=False``."""
    # a traced graph serves all sizes, so it must not compare them
    if not is_traced() and features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def apply_linear(layer: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution to the columns of a map (1, C, 1, n), without its bias.

    The layer is called, and its weight not read, because an adapter may wrap it. A column of zeros gives the bias.
    """
    results = layer(F.pad(columns, (0, 1)))
    return results[..., :-1] - results[..., -1:]


def crop(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop a map (N, C, h, w) to its upper left (N, C, H, W). It must be at least as large."""
    height, width = size
    if is_traced():  # slices compare the two sizes
        rows, columns = (torch.arange(side, device=features.device) for side in size)
        return features.index_select(-2, rows).index_select(-1, columns)
    return features[..., :height, :width]


def average(features: Tensor, cells: int) -> Tensor:
    """Average the whole image over cells x cells parts, (N, C, H, W) -> (N, C, cells, cells)."""
    if is_traced():  # ONNX has no pooling whose windows depend on the image
        rows, columns = Span.entire(features.shape[-2]), Span.entire(features.shape[-1])
        return tiles.average(features, cells, rows, columns).to(features.dtype)
    known = tile.average(features, cells) if (tile := tiles.current()) else None
    return F.adaptive_avg_pool2d(features, cells) if known is None else known


def downsample(features: Tensor, cells: int) -> Tensor:
    """Interpolate the whole image at cells x cells places, (N, C, H, W) -> (N, C, cells, cells)."""
    known = tile.downsample(features, cells) if (tile := tiles.current()) else None
    return resize(features, (cells, cells)) if known is None else known


def stretch(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Stretch a map of the whole image, of any size (N, C, h, w), to the grid of a feature map (N, C, H, W)."""
    if tile := tiles.current():
        return tile.stretch(features, size)
    return resize(features, size)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that uses the running statistics if it gets one value per channel.

    One value has no variance, so torch raises an error. That would rule out training with batches of one, because of
    the pooled branches of PPM and ASPP. It would also rule out images so small that the deepest features are 1 x 1.
    """

    def forward(self, features: Tensor) -> Tensor:
        if self.training and features[:, 0].numel() == 1:
            return by_running_statistics(self, features)
        return super().forward(features)


def by_running_statistics(norm: nn.BatchNorm2d, features: Tensor) -> Tensor:
    """Normalize (N, C, H, W) by the running statistics, in training mode too."""
    return F.batch_norm(features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm and, unless ``act=False``, ReLU. It preserves the size.

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
