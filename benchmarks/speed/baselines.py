"""The networks that ours are measured against, with random weights: time and size do not depend on them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet101

from ddsm_zoo.layers import ConvNormAct, resize
from ddsm_zoo.models.backbone import Backbone


class DANet(nn.Module):
    """DANet with ResNet-101 at stride 8, written from its paper (Fu et al., CVPR 2019, figures 2 and 3).

    The stride of 8 and the attention among all positions are what makes it large: 66.5 M parameters, and at
    1024 x 1024 some 1270 G multiply-adds, both with a stem of three 3 x 3 convolutions (32, 32 and 64 wide).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = Backbone("resnet101c", output_stride=8)
        channels = self.backbone.channels[-1]
        width = channels // 4
        self.to_positions = ConvNormAct(channels, width, 3)
        self.to_channels = ConvNormAct(channels, width, 3)
        self.positions = PositionAttention(width)
        self.channels = ChannelAttention()
        self.from_positions = ConvNormAct(width, width, 3)
        self.from_channels = ConvNormAct(width, width, 3)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes, H, W)."""
        features = self.backbone(x)[-1]
        positions = self.from_positions(self.positions(self.to_positions(features)))
        channels = self.from_channels(self.channels(self.to_channels(features)))
        return resize(self.classifier(positions + channels), (x.shape[-2], x.shape[-1]))


class PositionAttention(nn.Module):
    """Every position gathers from every other, weighed by the similarity of their projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(width, width // 8, 1)
        self.key = nn.Conv2d(width, width // 8, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        affinity = torch.bmm(query.transpose(1, 2), key).softmax(-1)  # (N, hw, hw)
        gathered = torch.bmm(value, affinity.transpose(1, 2)).view_as(x)
        return x + self.scale * gathered


class ChannelAttention(nn.Module):
    """Every channel gathers from every other, weighed by how little alike they are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same."""
        maps = x.flatten(2)
        energy = torch.bmm(maps, maps.transpose(1, 2))  # (N, C, C)
        affinity = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
        return x + self.scale * torch.bmm(affinity, maps).view_as(x)


class _TorchvisionDeepLab(nn.Module):
    """torchvision's DeepLabV3, logits alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)["out"]
        return logits


def _smp(architecture: str) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        try:
            library: Any = importlib.import_module("segmentation_models_pytorch")
        except ModuleNotFoundError as error:
            raise LookupError(
                f"measuring against smp needs the package {error.name}: pip install 'ddsm-zoo[benchmark]'"
            ) from error
        net: nn.Module = getattr(library, architecture)("resnet101", encoder_weights=None, classes=num_classes)
        return net

    return build


# name -> from the number of classes to the network
BASELINES: dict[str, Callable[[int], nn.Module]] = {
    "smp UPerNet-R101": _smp("UPerNet"),
    "smp DeepLabV3Plus-R101": _smp("DeepLabV3Plus"),
    "smp Segformer-R101": _smp("Segformer"),
    "torchvision DeepLabV3-R101": _TorchvisionDeepLab,
    "DANet-R101, stride 8": DANet,
}
