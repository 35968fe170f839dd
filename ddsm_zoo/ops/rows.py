"""Feature maps as matrices with one row for each position, which is how channels-last memory holds them."""

from __future__ import annotations

from torch import Tensor


def map_shape(features: Tensor) -> tuple[int, int, int]:
    """N, H and W of (N, C, H, W): what the rows run over."""
    return features.shape[0], features.shape[2], features.shape[3]


def to_rows(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N*H*W, C), contiguous; no copy where the map is channels-last already."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).contiguous()


def to_map(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(N*H*W, C) and (N, H, W) -> (N, C, H, W), channels-last."""
    return rows.view(*shape, -1).permute(0, 3, 1, 2)
