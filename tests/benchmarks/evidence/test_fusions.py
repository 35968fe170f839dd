"""The controls of the evidence: laterals alone, and SFNet's flow alignment."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from benchmarks.evidence.fusions import FlowAlignment, LateralFusion, register_controls
from ddsm_zoo import create_model
from ddsm_zoo.config import ModelConfig
from tests.support import brute_force

CONFIG = ModelConfig(decoder="uper", backbone="test_resnet.r160_in1k")


def upsampled(high: torch.Tensor) -> torch.Tensor:
    return F.interpolate(high, size=(6, 7), mode="bilinear", align_corners=False)


def test_laterals_leave_high_out() -> None:
    low = torch.randn(2, 8, 6, 7)
    module = LateralFusion(8, CONFIG)
    assert not list(module.parameters())
    assert module(low, torch.randn(2, 8, 3, 4)).equal(low)


def test_flow_alignment_reads_high_where_the_flow_leads() -> None:
    """Position by position, the border going on outside."""
    module = FlowAlignment(4, CONFIG).double().requires_grad_(False)
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
    module = FlowAlignment(8, CONFIG)
    out = module(torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4))
    (out * torch.randn_like(out)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_laterals_are_the_plain_decoder_without_a_way_down() -> None:
    """What stands above a level changes nothing on it: only the joined levels see the context."""
    register_controls()
    register_controls()  # which a runner does for every arm
    model = create_model("uper_tiny", num_classes=3, fusion="laterals").eval()
    features = [torch.randn(1, channels, *size) for channels, size in zip(model.backbone.channels, SIZES, strict=True)]
    seen: list[torch.Tensor] = []
    model.decoder.fuse.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.decoder(features)
        model.decoder([*features[:-1], torch.randn_like(features[-1])])
    changed = (seen[0] != seen[1]).flatten(2).any(2).any(0).view(4, -1).any(1)
    assert changed.tolist() == [True, False, False, False]


SIZES = ((16, 16), (8, 8), (4, 4), (2, 2))
