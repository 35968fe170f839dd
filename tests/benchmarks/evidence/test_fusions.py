"""The controls of the evidence: laterals alone, SFNet's flow alignment, and other readings of the module."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from benchmarks.evidence.fusions import (
    FlowAlignment,
    LateralFusion,
    TwoSamplerAffinity,
    register_controls,
    two_sampler_ddsm,
    unscale,
    unscaled_ddsm,
)
from ddsm_zoo import create_model
from ddsm_zoo.config import ModelConfig
from ddsm_zoo.layers.affinity import ChannelAffinity, SpatialAffinity
from ddsm_zoo.layers.ddsm import DDSM
from ddsm_zoo.ops import sampled_attention
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


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 16, 6, 7), torch.randn(2, 16, 3, 4)


def test_unscaled_logits_are_those_of_a_query_times_the_side() -> None:
    scaled = ChannelAffinity(16, samples=9, width=16, pool=4)
    written = copy.deepcopy(scaled)
    unscale(written)
    with torch.no_grad():
        scaled.alpha.weight.mul_(4)
        scaled.alpha.bias.mul_(4)
    low, high = maps()
    torch.testing.assert_close(written(low, high), scaled(low, high))


def test_own_taps_of_the_value_read_the_value_alone() -> None:
    """Moved down by one row, they read what the one sampler reads in a value that is moved up."""
    module = TwoSamplerAffinity(16, samples=9, width=8, positions=16)
    one = SpatialAffinity(16, samples=9, width=8, positions=16)
    one.load_state_dict({name: tensor for name, tensor in module.state_dict().items() if "value_sampler" not in name})
    low, high = maps()
    torch.testing.assert_close(module(low, high), one(low, high))  # both samplers start with the plain grid
    with torch.no_grad():
        module.value_sampler.predict.bias[0:18:2] = 1  # dy of every tap
    query, key, value = one.project(low, high)
    moved = F.pad(value, (0, 0, 0, 1))[:, :, 1:]
    offset, modulation = one.sampler(key)
    expected = one.out(sampled_attention(query, key, moved, offset, modulation, kernel_size=3))
    inner = (..., slice(1, -1), slice(None))  # the rows at the border read what the move cut off
    torch.testing.assert_close(module(low, high)[inner], expected[inner])


@pytest.mark.parametrize("build", [unscaled_ddsm, two_sampler_ddsm])
def test_every_part_of_a_reading_learns(build: Callable[[int, ModelConfig], DDSM]) -> None:
    module = build(16, CONFIG)
    (module(*maps()) * torch.randn(2, 16, 6, 7)).sum().backward()
    still = [name for name, parameter in module.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not still
