"""What each ``fusion`` part of a model name stands for."""

from __future__ import annotations

import itertools
import typing

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from ddsm_zoo.config import DDSMConfig, Fusion
from ddsm_zoo.layers import ChannelAffinity, SpatialAffinity, build_fusion
from ddsm_zoo.layers.fusion import FullDeformConv2d
from tests.support import brute_force

CONFIG = DDSMConfig(width=16, pool=3, positions=5)
FUSIONS = typing.get_args(Fusion)


def upsampled(high: torch.Tensor) -> torch.Tensor:
    return F.interpolate(high, size=(6, 7), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("low_size", "high_size"), [((6, 7), (3, 4)), ((1, 1), (1, 1)), ((2, 9), (5, 1))])
def test_output_has_the_size_of_low(fusion: Fusion, low_size: tuple[int, int], high_size: tuple[int, int]) -> None:
    module = build_fusion(fusion, 8, CONFIG).eval()
    out = module(torch.randn(2, 8, *low_size), torch.randn(2, 8, *high_size))
    assert out.shape == (2, 8, *low_size)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("fusion", "halves"),
    [("ddsm", {SpatialAffinity, ChannelAffinity}), ("ddsm_s", {SpatialAffinity}), ("ddsm_c", {ChannelAffinity})],
)
def test_halves_of_the_ablation(fusion: Fusion, halves: set[type]) -> None:
    parts = {type(part) for part in build_fusion(fusion, 8, CONFIG).modules()}
    assert parts & {SpatialAffinity, ChannelAffinity} == halves


def test_none_is_the_plain_pyramid() -> None:
    module = build_fusion("none", 8, CONFIG)
    low, high = torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4)
    assert not list(module.parameters())
    torch.testing.assert_close(module(low, high), low + upsampled(high))


@pytest.mark.parametrize("autocast", [False, True])
def test_dcn_in_half_precision_stays_near(autocast: bool) -> None:
    """On the CPU too, where torchvision has no kernel for it."""
    module = build_fusion("dcn", 8, CONFIG).eval()
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
    module = build_fusion("dcn", 8, CONFIG).double()
    low, high = (torch.randn(2, 8, *size, dtype=torch.float64) for size in ((6, 7), (3, 4)))
    out = module(low, high)
    kernel = module.conv.weight.detach()
    expected = low + F.batch_norm(F.conv2d(upsampled(high), kernel, padding=1), None, None, training=True)
    torch.testing.assert_close(out, expected)
    (out * torch.randn_like(out)).sum().backward()
    assert module.offset.weight.grad.flatten(1).abs().sum(1).gt(0).all()


def test_dcn_is_traced_to_the_same_sum() -> None:
    module = build_fusion("dcn", 8, CONFIG).eval()
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


def test_laterals_leave_high_out() -> None:
    low = torch.randn(2, 8, 6, 7)
    module = build_fusion("laterals", 8, CONFIG)
    assert not list(module.parameters())
    assert module(low, torch.randn(2, 8, 3, 4)).equal(low)


def test_flow_alignment_reads_high_where_the_flow_leads() -> None:
    """Position by position, the border going on outside."""
    module = build_fusion("fam", 4, CONFIG).double().requires_grad_(False)
    torch.nn.init.normal_(module.flow.weight, std=0.5)
    low, high = torch.randn(1, 4, 6, 7).double(), torch.randn(1, 4, 3, 4).double()
    out = module(low, high)
    reduced = F.conv2d(low, module.reduce_low.weight), upsampled(F.conv2d(high, module.reduce_high.weight))
    flow = F.conv2d(torch.cat(reduced, 1), module.flow.weight, padding=1)[0]
    assert flow.abs().max() > 1
    large = upsampled(high)[0]
    for row, column in itertools.product(range(6), range(7)):
        y = min(max(row + float(flow[0, row, column]), 0), 5)
        x = min(max(column + float(flow[1, row, column]), 0), 6)
        read = brute_force.bilinear(large.numpy(), y, x)
        expected = low[0, :, row, column] + torch.from_numpy(read)
        torch.testing.assert_close(out[0, :, row, column], expected)


def test_flow_learns() -> None:
    module = build_fusion("fam", 8, CONFIG)
    out = module(torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4))
    (out * torch.randn_like(out)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
