"""The module as a whole: low + S + K, either half alone, any size, every parameter learning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddsm_zoo.config import DDSMConfig
from ddsm_zoo.layers import DDSM, ChannelAffinity, SpatialAffinity

CONFIG = DDSMConfig(width=16, pool=3, positions=5)


def perturbed(module: nn.Module) -> nn.Module:
    """Moved away from the start, where offsets are whole pixels and all modulations equal."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.double()


def draw(low_size: tuple[int, int] = (6, 8), high_size: tuple[int, int] = (3, 4)) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 8, *low_size).double(), torch.randn(2, 8, *high_size).double()


@pytest.mark.parametrize(
    ("spatial", "channel", "halves"),
    [
        (True, True, {SpatialAffinity, ChannelAffinity}),
        (True, False, {SpatialAffinity}),
        (False, True, {ChannelAffinity}),
        (False, False, set()),
    ],
)
def test_is_low_plus_its_halves(spatial: bool, channel: bool, halves: set[type[nn.Module]]) -> None:
    module = perturbed(DDSM(8, CONFIG, spatial=spatial, channel=channel)).eval()
    affinities = [part for part in module.modules() if isinstance(part, (SpatialAffinity, ChannelAffinity))]
    assert {type(part) for part in affinities} == halves
    low, high = draw()
    before = low.clone()
    out = module(low, high)
    torch.testing.assert_close(out, low + sum(part(low, high) for part in affinities))
    assert low.equal(before)  # low goes on to other places: nothing may be added to it in place
    assert out.equal(low) == (not affinities)


def test_sizes_come_from_the_config() -> None:
    module = DDSM(8, DDSMConfig(pixels=25, channels=9, width=16, pool=3, positions=5))
    assert [part.sampler.kernel_size for part in (module.spatial, module.channel)] == [5, 3]
    spatial, channel = module.spatial, module.channel
    assert spatial.out.weight.shape == (8, 16, 1, 1)
    assert channel.gamma.weight.shape == (16, 8, 1, 1)
    assert channel.pool == 3
    assert spatial.low_position.rows.shape == (8, 5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("low_size", "high_size"), [((1, 1), (1, 1)), ((1, 40), (1, 2)), ((5, 1), (3, 1)), ((2, 3), (4, 9))]
)
def test_any_size(low_size: tuple[int, int], high_size: tuple[int, int], training: bool) -> None:
    module = perturbed(DDSM(8, CONFIG)).train(training)
    low, high = draw(low_size, high_size)
    out = module(low, high)
    assert out.shape == low.shape
    assert out.isfinite().all()


def test_gradients_reach_everything() -> None:
    module = perturbed(DDSM(8, CONFIG)).eval()
    low, high = (tensor.requires_grad_() for tensor in draw())
    (module(low, high) * torch.randn(2, 8, 6, 8).double()).sum().backward()
    for name, tensor in (("low", low), ("high", high), *module.named_parameters()):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 1e-8, name


def test_starts_to_learn_where_to_sample() -> None:
    """The samplers start at zero and must not stay there."""
    module = DDSM(8, CONFIG).double()
    (module(*draw()) * torch.randn(2, 8, 6, 8).double()).sum().backward()
    for part in (module.spatial, module.channel):
        rows = part.sampler.predict.weight.grad.flatten(1).abs().sum(1)
        assert rows.gt(1e-12).all()
