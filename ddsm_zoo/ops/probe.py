"""Inspect sampled attention at one position: tap locations, modulations and attention weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_zoo.ops.grid import bilinear_corners, sampling_positions
from ddsm_zoo.ops.rows import to_rows


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Taps of one position.

    ``places`` (K, 2) are row and column in pixels of the map. ``modulations`` and ``affinities`` are (K,), and
    affinities add up to one. A place far outside the map, where nothing can be read, is given as two pixels outside.
    """

    places: Tensor
    modulations: Tensor
    affinities: Tensor


def probe(
    query: Tensor, key: Tensor, offset: Tensor, modulation: Tensor, position: tuple[int, int], *, kernel_size: int
) -> Probe:
    """Inspect the taps at ``position`` (row, column) of the first image, for tensors as `sampled_attention` takes them.

    At this position, `sampled_attention` returns sum_n affinities[n] * modulations[n] * value(places[n]).

    Args:
        query: Queries (N, Ck, H, W).
        key: Keys (N, Ck, H, W).
        offset: Offsets (N, 2K, H, W) in pixels.
        modulation: Modulations (N, K, H, W).
        position: Row and column, from 0.
        kernel_size: Odd side k of the grid, K = k * k.

    Returns:
        Locations, modulations and attention weights of the K taps.
    """
    row, column = position
    full = torch.promote_types(offset.dtype, torch.float32)
    y, x = (place[0, :, row, column] for place in sampling_positions(offset.to(full), kernel_size))  # (K,)
    corners, weights = bilinear_corners(y, x, (key.shape[-2], key.shape[-1]))  # (4, K)
    strength = modulation[0, :, row, column].to(full)
    keys = (to_rows(key[:1])[corners].to(full) * weights[..., None]).sum(dim=0)  # (K, C)
    logits = keys @ query[0, :, row, column].to(full) * strength
    return Probe(places=torch.stack((y, x), dim=1), modulations=strength, affinities=logits.softmax(dim=0))
