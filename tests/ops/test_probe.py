"""What is said of one position, against the operation itself."""

from __future__ import annotations

import pytest
import torch

from ddsm_zoo.ops import sampled_attention
from ddsm_zoo.ops.probe import probe
from tests.support.brute_force import bilinear
from tests.support.closeness import rounding_error


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_at_the_places_makes_the_output(kernel_size: int, dtype: torch.dtype) -> None:
    """The weighted sum of the value, read by hand: inside, across the border and far outside the map."""
    taps, height, width = kernel_size**2, 7, 9
    query, key, value = (torch.randn(1, channels, height, width).to(dtype) for channels in (4, 4, 6))
    offset = (6 * torch.randn(1, 2 * taps, height, width)).to(dtype)
    modulation = torch.rand(1, taps, height, width).to(dtype)
    out = sampled_attention(query, key, value, offset, modulation, kernel_size=kernel_size)
    for position in [(0, 0), (3, 4), (6, 8)]:
        found = probe(query, key, offset, modulation, position, kernel_size=kernel_size)
        assert found.affinities.sum().item() == pytest.approx(1, abs=rounding_error(taps, 1.0))
        assert found.places.shape == (taps, 2)
        total = 0
        for place, strength, affinity in zip(found.places, found.modulations, found.affinities, strict=True):
            read = bilinear(value[0].double().numpy(), *place.tolist())
            total = total + affinity.item() * strength.item() * read
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        assert total == pytest.approx(out[0, :, position[0], position[1]].double().numpy(), abs=tolerance)
