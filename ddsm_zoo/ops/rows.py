"""Feature maps as matrices with one row for each position, the order of channels-last memory."""

from __future__ import annotations

from torch import Tensor


def map_shape(features: Tensor) -> tuple[int, int, int]:
    """Return N, H and W of a map (N, C, H, W), the dimensions that its rows run over."""
    return features.shape[0], features.shape[2], features.shape[3]


def row_view(features: Tensor) -> Tensor:
    """View (N, C, H, W) as (N*H*W, C), without a copy where the strides allow it."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def to_rows(features: Tensor) -> Tensor:
    """Convert (N, C, H, W) to contiguous (N*H*W, C). A channels-last map is not copied."""
    return row_view(features).contiguous()


def to_map(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Convert (N*H*W, C) and (N, H, W) to (N, C, H, W), channels-last."""
    return rows.view(*shape, -1).permute(0, 3, 1, 2)
