"""The dynamic sampler of Eq. 1: where it starts and what its weights mean."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddsm_zoo.layers import DynamicSampler
from ddsm_zoo.ops.reference import sample
from tests.support import brute_force


@pytest.mark.parametrize("samples", [1, 9, 25])
def test_starts_as_the_plain_grid_at_half_strength(samples: int) -> None:
    features = torch.randn(2, 5, 4, 6)
    sampler = DynamicSampler(5, samples)
    offset, modulation = sampler(features)
    assert offset.shape == (2, 2 * samples, 4, 6)
    assert offset.eq(0).all()
    assert modulation.shape == (2, samples, 4, 6)
    assert modulation.eq(0.5).all()
    side = sampler.kernel_size
    neighbors = F.unfold(features, side, padding=side // 2).view(2, 5, samples, 4, 6)
    torch.testing.assert_close(sample(features, offset, modulation, side), neighbors / 2)


def test_offsets_are_rows_then_columns_in_pixels() -> None:
    features = torch.randn(1, 2, 5, 6)
    sampler = DynamicSampler(2, 9)
    center, down, across = 4, 1.0, -2.0
    with torch.no_grad():
        sampler.predict.bias[2 * center] = down
        sampler.predict.bias[2 * center + 1] = across
        sampler.predict.bias[2 * 9 + center] = torch.tensor(3.0).log()  # sigmoid: 3 / 4
    sampled = sample(features, *sampler(features), 3)[:, :, center]
    expected = torch.zeros_like(features)
    expected[..., :-1, 2:] = 0.75 * features[..., 1:, :-2]
    torch.testing.assert_close(sampled, expected)


def test_equation_1() -> None:
    channels, taps, height, width = 3, 9, 4, 5
    features = torch.randn(2, channels, height, width, dtype=torch.float64)
    sampler = DynamicSampler(channels, taps).double()
    for parameter in sampler.parameters():
        torch.nn.init.normal_(parameter)
    weight = sampler.predict.weight.detach().numpy().reshape(3 * taps, channels)
    bias = sampler.predict.bias.detach().numpy()
    sampled = sample(features, *sampler(features), 3).detach().numpy()
    for image, row, column in itertools.product(range(2), range(height), range(width)):
        pixels = features[image].numpy()
        prediction = weight @ pixels[:, row, column] / np.sqrt(channels) + bias
        for tap, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            strength = 1 / (1 + np.exp(-prediction[2 * taps + tap]))
            place = (row + dy + prediction[2 * tap], column + dx + prediction[2 * tap + 1])
            expected = strength * brute_force.bilinear(pixels, *place)
            np.testing.assert_allclose(sampled[image, :, tap, row, column], expected, atol=1e-12)


def test_offset_and_modulation_learn() -> None:
    features = torch.randn(1, 3, 4, 4)
    sampler = DynamicSampler(3, 9)
    offset, modulation = sampler(features)
    torch.manual_seed(1)
    (sample(features, offset, modulation, 3) * torch.randn(1, 3, 9, 4, 4)).sum().backward()
    assert sampler.predict.weight.grad.flatten(1).abs().sum(1).gt(0).all()
