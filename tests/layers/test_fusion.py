"""What each ``fusion`` part of a model name stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d

from ddsm_zoo.config import DDSMConfig, ModelConfig
from ddsm_zoo.layers import ChannelAffinity, SpatialAffinity, build_fusion
from ddsm_zoo.layers.fusion import FullDeformConv2d

SIZES = DDSMConfig(width=16, pool=3, positions=5)


def build(fusion: str, channels: int = 8) -> nn.Module:
    config = ModelConfig(decoder="uper", backbone="test_resnet.r160_in1k", fusion=fusion, ddsm=SIZES)
    return build_fusion(channels, config)


FUSIONS = ("none", "dcn", "ddsm_s", "ddsm_c", "ddsm")


def upsampled(high: torch.Tensor) -> torch.Tensor:
    return F.interpolate(high, size=(6, 7), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("low_size", "high_size"), [((6, 7), (3, 4)), ((1, 1), (1, 1)), ((2, 9), (5, 1))])
def test_output_has_the_size_of_low(fusion: str, low_size: tuple[int, int], high_size: tuple[int, int]) -> None:
    module = build(fusion).eval()
    out = module(torch.randn(2, 8, *low_size), torch.randn(2, 8, *high_size))
    assert out.shape == (2, 8, *low_size)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("fusion", "halves"),
    [("ddsm", {SpatialAffinity, ChannelAffinity}), ("ddsm_s", {SpatialAffinity}), ("ddsm_c", {ChannelAffinity})],
)
def test_halves_of_the_ablation(fusion: str, halves: set[type]) -> None:
    parts = {type(part) for part in build(fusion).modules()}
    assert parts & {SpatialAffinity, ChannelAffinity} == halves


def test_none_is_the_plain_pyramid() -> None:
    module = build("none")
    low, high = torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4)
    assert not list(module.parameters())
    torch.testing.assert_close(module(low, high), low + upsampled(high))


@pytest.mark.parametrize("autocast", [False, True])
def test_dcn_in_half_precision_stays_near(autocast: bool) -> None:
    """On the CPU too, where torchvision has no kernel for it."""
    module = build("dcn").eval()
    torch.nn.init.normal_(module.offset.weight, std=0.1)
    low, high = torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4)
    expected = module(low, high)
    half = (low.bfloat16(), high.bfloat16())
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(*half)
    else:
        out = module.bfloat16()(*half)
        assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.02)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_dcn_is_torchvisions_deformable_convolution() -> None:
    conv = FullDeformConv2d(8, 6, 3, padding=1, bias=False)
    features = torch.randn(2, 8, 6, 7, requires_grad=True)
    offset = (2 * torch.randn(2, 18, 6, 7)).requires_grad_()  # many taps lie outside
    tensors = (features, offset, conv.weight)
    out, expected = conv(features, offset), deform_conv2d(features, offset, conv.weight, padding=1)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    probe = torch.randn_like(out)
    for own, theirs in zip(
        torch.autograd.grad((out * probe).sum(), tensors),
        torch.autograd.grad((expected * probe).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)


def test_dcn_starts_as_a_convolution_and_learns_its_offsets() -> None:
    module = build("dcn").double()
    low, high = (torch.randn(2, 8, *size, dtype=torch.float64) for size in ((6, 7), (3, 4)))
    out = module(low, high)
    kernel = module.conv.weight.detach()
    expected = low + F.batch_norm(F.conv2d(upsampled(high), kernel, padding=1), None, None, training=True)
    torch.testing.assert_close(out, expected)
    (out * torch.randn_like(out)).sum().backward()
    assert module.offset.weight.grad.flatten(1).abs().sum(1).gt(0).all()


def test_dcn_is_traced_to_the_same_sum() -> None:
    module = build("dcn").eval()
    torch.nn.init.normal_(module.offset.weight)
    low, high = torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4)
    graphs: list[torch.fx.GraphModule] = []

    def remember(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    out = torch.compile(module, fullgraph=True, backend=remember)(low, high)
    torch.testing.assert_close(out, module(low, high), atol=1e-5, rtol=0)
    (graph,) = graphs
    assert "deform_conv2d" not in graph.code
