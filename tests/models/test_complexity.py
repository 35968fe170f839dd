"""The published figures, and counts that can be done by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

import ddsm_zoo
from ddsm_zoo.config import DDSMConfig, ModelConfig
from ddsm_zoo.layers import build_fusion
from ddsm_zoo.models import Complexity, Segmenter, complexity, count

CONFIG = ModelConfig(decoder="uper", backbone="test_resnet.r160_in1k", width=16)


def counted(module: nn.Module, in_chans: int, size: tuple[int, int]) -> Complexity:
    return count(module.to("meta"), (in_chans, *size))


class Fused(nn.Module):
    """A fusion module with the same map as low and high."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fusion(x, x)
        return out


def test_the_published_complexity() -> None:
    """Table 3: 51.8 M parameters and 367.5 G multiply-adds at 1024 x 1024 are not exceeded."""
    params, multiply_adds = complexity(ddsm_zoo.model_config("uper_ddsm_r101"), (1024, 1024))
    assert 48e6 < params <= 51.8e6
    assert 350e9 < multiply_adds <= 367.5e9


def test_the_plain_twin() -> None:
    params, multiply_adds = complexity(ddsm_zoo.model_config("uper_r101"), (1024, 1024))
    assert params == pytest.approx(50.1e6, rel=0.01)
    assert multiply_adds == pytest.approx(405e9, rel=0.01)


def test_a_convolution() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Upsample(scale_factor=2)
    )
    params, multiply_adds = counted(module, 3, (10, 14))
    assert params == 8 * 3 * 9 + 8 + 2 * 8
    assert multiply_adds == 5 * 7 * 8 * 3 * 9


def test_a_deformable_convolution_counts_as_a_convolution() -> None:
    module = Fused(build_fusion(8, dataclasses.replace(CONFIG, fusion="dcn")))
    params, multiply_adds = counted(module, 8, (10, 14))
    offsets, convolution = 18 * 8 * 9, 8 * 8 * 9
    assert params == offsets + 18 + convolution + 2 * 8
    assert multiply_adds == 10 * 14 * (offsets + convolution)


def test_the_module_by_hand() -> None:
    width, inner, taps, pool, positions = 8, 16, 9, 3, 5
    config = DDSMConfig(pixels=taps, channels=taps, width=inner, pool=pool, positions=positions)
    pixels = 10 * 14
    spatial = (
        pixels * 4 * inner * width  # theta, phi of low; phi of high, g
        + (2 * positions + 1) * 4 * inner * width  # the same of the positional tables, and of zeros
        + pixels * 3 * taps * inner  # offsets and modulations
        + pixels * 2 * taps * inner  # query . key, affinity . value
        + pixels * inner * width  # back
    )
    channel = (
        pool**2 * 3 * width * inner  # alpha, beta of both
        + 256 * width * inner  # gamma
        + inner * 3 * taps * pool**2  # offsets and modulations
        + inner * taps * (pool**2 + 256)  # query . key, affinity . value
        + 256 * inner * width  # back
    )
    for fusion, expected in (("ddsm_s", spatial), ("ddsm_c", channel), ("ddsm", spatial + channel)):
        module = Fused(build_fusion(width, dataclasses.replace(CONFIG, fusion=fusion, ddsm=config)))
        assert counted(module, width, (10, 14)).multiply_adds == expected, fusion


@pytest.mark.parametrize("name", ["uper_tiny", "deeplabv3plus_tiny"])
def test_a_plain_model_is_its_convolutions(name: str) -> None:
    config = dataclasses.replace(ddsm_zoo.model_config(name), in_chans=4)
    model = Segmenter(config).eval()
    products = []

    def note(convolution: nn.Conv2d, _: tuple[Tensor, ...], out: Tensor) -> None:
        products.append(out.numel() * math.prod(convolution.weight.shape[1:]))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.randn(1, 4, 65, 97))
    expected = Complexity(sum(parameter.numel() for parameter in model.parameters()), sum(products))
    assert complexity(config, (65, 97)) == expected
    # the auxiliary head is there in training only
    assert complexity(dataclasses.replace(config, auxiliary=True), (65, 97)) == expected
