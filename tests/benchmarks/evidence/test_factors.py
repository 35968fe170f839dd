"""The variants of the module that benchmarks/evidence/factors.py trains: each is what its title says."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddsm_zoo import create_model
from ddsm_zoo.layers import ChannelAffinity, DynamicSampler, SpatialAffinity
from ddsm_zoo.models import Segmenter
from tests.docs.pages import ROOT

TINY = {"uper_ddsm_lite0": "uper_ddsm_tiny", "uper_lite0": "uper_tiny"}
# offsets begin at zero, where their factor and a second set of them change nothing
SAME_AT_START = {"offset-rate", "grid", "separate"}


@pytest.fixture
def factors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "evidence")
    import factors

    return factors


def built(factor: Any) -> Segmenter:
    torch.manual_seed(0)
    model = create_model(TINY[factor.model], num_classes=5, **factor.config)
    nn.init.normal_(model.classifier.weight)
    factor.change(model)
    return model


def scores(model: Segmenter) -> Tensor:
    with torch.inference_mode():
        return model.eval()(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)))


def of_kind(model: Segmenter, *kinds: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kinds)]


def test_every_variant_begins_as_it_should_and_can_be_trained(factors: ModuleType) -> None:
    alike = set()
    for name, factor in factors.FACTORS.items():
        model = built(factor)
        expected = built(factors.Factor(title="nothing", model=factor.model))
        if torch.allclose(scores(model), scores(expected), rtol=1e-4, atol=1e-4):
            alike.add(name)
        model.train()(torch.rand(2, 3, 64, 96)).square().mean().backward()
        gradients = [each.grad for each in model.parameters() if each.requires_grad]
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients), name
        assert any(gradient is not None and gradient.any() for gradient in gradients), name
    assert alike == SAME_AT_START


def test_the_grid_stays_where_it_is_and_a_tenth_of_the_rate_is_a_tenth_of_the_offsets(factors: ModuleType) -> None:
    features = torch.randn(1, 64, 8, 8)
    found = {}
    for name in ("offset-rate", "grid"):
        model = built(factors.FACTORS[name])
        sampler = of_kind(model, DynamicSampler)[0]
        nn.init.normal_(sampler.predict.weight, generator=torch.Generator().manual_seed(0))
        offset, modulation = sampler(features[:, : sampler.predict.in_channels])
        whole, same = DynamicSampler.forward(sampler, features[:, : sampler.predict.in_channels])
        torch.testing.assert_close(modulation, same)
        found[name] = (offset, whole)
    torch.testing.assert_close(found["offset-rate"][0], found["offset-rate"][1] / 10)
    assert found["offset-rate"][0].any()
    assert not found["grid"][0].any()


def test_a_second_set_of_offsets_moves_the_values_alone(factors: ModuleType) -> None:
    """Where both sets agree, it is the module's own half again."""
    model = built(factors.FACTORS["separate"])
    affinity = of_kind(model, SpatialAffinity)[0]
    width = model.config.width
    low, high = torch.randn(1, width, 8, 8), torch.randn(1, width, 4, 4)
    before = affinity(low, high)
    nn.init.constant_(affinity.value_sampler.predict.bias, 0.5)
    moved = affinity(low, high)
    assert not torch.allclose(before, moved)
    nn.init.constant_(affinity.sampler.predict.bias, 0.5)
    torch.testing.assert_close(affinity(low, high), SpatialAffinity.forward(affinity, low, high))


def test_what_begins_at_zero_adds_nothing(factors: ModuleType) -> None:
    halves = of_kind(built(factors.FACTORS["silent"]), SpatialAffinity, ChannelAffinity)
    assert halves
    assert all(not parameter.any() for half in halves for parameter in half.out.parameters())
