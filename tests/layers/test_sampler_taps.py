"""How many taps of a sampler fall on the map."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from ddsm_zoo.config import DDSMConfig
from ddsm_zoo.layers import DDSM, DynamicSampler
from ddsm_zoo.layers.fusion import DeformableFusion
from ddsm_zoo.layers.sampler import TapCounts, watch_taps


def brute_force(offset: torch.Tensor, kernel_size: int) -> TapCounts:
    """Tap by tap: whether one of the four pixels around it is inside and has a weight."""
    height, width = offset.shape[-2:]
    radius = kernel_size // 2
    counts = TapCounts()
    for image, row, column in itertools.product(range(len(offset)), range(height), range(width)):
        inside = []
        for tap, (dy, dx) in enumerate(itertools.product(range(-radius, radius + 1), repeat=2)):
            y = row + dy + float(offset[image, 2 * tap, row, column])
            x = column + dx + float(offset[image, 2 * tap + 1, row, column])
            pixels = itertools.product(range(height), range(width))
            inside.append(any(abs(y - r) < 1 and abs(x - c) < 1 for r, c in pixels))
            counts.grid += 0 <= row + dy < height and 0 <= column + dx < width
        counts.taps += len(inside)
        counts.inside += sum(inside)
        counts.positions += 1
        counts.blind += not any(inside)
    counts.moved = sum(abs(float(number)) for number in offset.flatten())
    return counts


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("size", [(4, 5), (1, 7)])
def test_counts_are_those_of_every_tap_in_turn(kernel_size: int, size: tuple[int, int]) -> None:
    offset = 3 * torch.randn(2, 2 * kernel_size**2, *size)
    counts = TapCounts()
    counts.add(offset)
    expected = brute_force(offset, kernel_size)
    assert dataclasses.asdict(counts) == pytest.approx(dataclasses.asdict(expected))
    assert counts.mean_offset == pytest.approx(float(offset.abs().mean()))
    assert counts.on_map == counts.inside / counts.taps
    assert counts.kept == counts.inside / counts.grid


def test_taps_that_are_nowhere_are_off_the_map() -> None:
    offset = torch.full((1, 2, 3, 3), float("inf"))
    offset[..., 0] = float("nan")
    counts = TapCounts()
    counts.add(offset)
    assert (counts.inside, counts.blind) == (0, 9)


def test_every_sampler_of_a_module_is_watched_and_no_hook_stays() -> None:
    module = DDSM(8, DDSMConfig(width=16, pool=3, positions=5))
    low, high = torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4)
    with watch_taps(module) as counts:
        module(low, high)
        module(low, high)
    assert counts.keys() == {"spatial", "channel"}
    assert counts["spatial"].positions == 2 * 2 * 6 * 7
    assert counts["channel"].positions == 2 * 2 * 16  # channels on their grid
    assert all(count.kept == 1 for count in counts.values())  # the plain grid to begin with
    module(low, high)
    assert counts["spatial"].positions == 2 * 2 * 6 * 7


def test_offsets_of_a_deformable_convolution_are_watched() -> None:
    fusion = DeformableFusion(4)
    torch.nn.init.constant_(fusion.offset.bias, 100.0)
    with watch_taps(fusion) as counts:
        fusion(torch.randn(1, 4, 4, 4), torch.randn(1, 4, 2, 2))
    (count,) = counts.values()
    assert (count.inside, count.blind) == (0, 16)


def test_bounded_offsets_leave_no_channel_without_a_tap() -> None:
    """Whatever the sampler of the channel half learned: a tap for each of the 8 x 8 channels, and most taps on them."""
    sampler = DynamicSampler(16, 9, bound=1.5)
    for scale in (0.1, 10.0):
        torch.nn.init.normal_(sampler.predict.weight, std=scale)
        torch.nn.init.normal_(sampler.predict.bias, std=scale)
        with watch_taps(sampler) as counts:
            offset, _ = sampler(torch.randn(8, 16, 8, 8))
        assert offset.abs().max() <= 1.5
        assert counts[""].on_map > 0.75
        assert counts[""].blind == 0


def test_offsets_at_their_bound_that_all_lead_outside_leave_most_taps_on_the_channels() -> None:
    """On an axis of 8 cells, 6 of the 24 taps are outside: two of the first cell, one of the second, as at the end."""
    offset = torch.empty(1, 18, 8, 8)
    outward = torch.where(torch.arange(8) < 4, -1.499, 1.499)
    offset[:, 0::2], offset[:, 1::2] = outward[:, None], outward
    counts = TapCounts()
    counts.add(offset)
    assert counts.on_map == (18 / 24) ** 2
    assert counts.blind == 0
