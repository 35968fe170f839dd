"""Pyramid pooling and atrous pyramid pooling: by their definition, for any size, for a batch of one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddsm_zoo.layers import ASPP, PPM, ConvNormAct

MODULES = {
    "ppm": lambda: PPM(6, 4),
    "aspp": lambda: ASPP(6, 4, rates=(2, 3), separable=False),
    "separable aspp": lambda: ASPP(6, 4, rates=(2, 3), separable=True),
}


def block(module: ConvNormAct, x: Tensor, dilation: int = 1) -> Tensor:
    """Convolution, normalization at its initial statistics (mean 0, variance 1), ReLU."""
    weight = module.conv.weight
    y = F.conv2d(x, weight, padding=weight.shape[-1] // 2 * dilation, dilation=dilation)
    return (y / math.sqrt(1 + module.norm.eps)).relu()


def cell_averages(x: Tensor, bins: int) -> Tensor:
    """Average over ``bins`` cells a side, whose borders are rounded outwards."""
    height, width = x.shape[2:]

    def cells(length: int) -> list[slice]:
        return [slice(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]

    rows = [torch.stack([x[:, :, r, c].mean((2, 3)) for c in cells(width)], -1) for r in cells(height)]
    return torch.stack(rows, -2)


def stretch(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def test_ppm_pools_over_1_2_3_and_6_cells() -> None:
    module = PPM(6, 4).eval()
    x = torch.randn(2, 6, 7, 9)
    pooled = [
        stretch(block(branch, cell_averages(x, bins)), (7, 9))
        for bins, branch in zip((1, 2, 3, 6), module.branches, strict=True)
    ]
    torch.testing.assert_close(module(x), block(module.fuse, torch.cat((x, *pooled), 1)))


def test_aspp_looks_as_far_as_its_rates() -> None:
    module = ASPP(6, 4, rates=(2, 3), separable=False).eval()
    x = torch.randn(2, 6, 7, 9)
    branches = [block(branch, x, dilation) for dilation, branch in zip((1, 2, 3), module.branches, strict=True)]
    image = block(module.image, x.mean((2, 3), keepdim=True)).expand(-1, -1, 7, 9)
    torch.testing.assert_close(module(x), block(module.fuse, torch.cat((*branches, image), 1)))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", [(1, 1), (1, 13), (5, 3)])
def test_a_batch_of_one_trains(name: str, size: tuple[int, int]) -> None:
    module: nn.Module = MODULES[name]()
    out = module(torch.randn(1, 6, *size))
    assert out.shape == (1, 4, *size)
    (out * torch.randn_like(out)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    assert all(buffer.isfinite().all() for buffer in module.buffers())
