"""Sampled attention on the CPU without ever holding the sampled features.

Channels-last, every pixel is one contiguous row. A sampled value is then a weighted sum of rows, which is what
``embedding_bag`` computes in one pass, and a sampled logit is a weighted sum of dot products between the query's row
and four rows of the key, which is what ``embedding_bag``'s derivative by its weights computes. With M = N*H*W
positions the largest tensors are (M, K, 4) indices and weights: there is no factor C.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_zoo.ops.grid import bilinear_corners, sampling_positions


def sampled_attention(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
) -> Tensor:
    """See `ddsm_zoo.ops.sampled_attention`; float32 only."""
    out: Tensor = _SampledAttention.apply(query, key, value, offset, modulation, kernel_size)
    return out


class _SampledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
    ) -> Tensor:
        batch, _, height, width = value.shape
        index, weight = _corners(offset, kernel_size)
        taps = _to_rows(modulation)  # (M, K)
        key_dots = _row_dots(_to_rows(query), _to_rows(key), index)  # (M, 4K)
        logits = (key_dots * weight).view(-1, taps.shape[1], 4).sum(-1) * taps  # (M, K)
        affinity = logits.softmax(dim=1)
        rows = _weighted_rows(_to_rows(value), index, _per_corner(affinity * taps) * weight)
        ctx.save_for_backward(query, key, value, offset, modulation, affinity, key_dots)
        ctx.kernel_size = kernel_size
        return _to_map(rows, (batch, height, width))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, offset, modulation, affinity, key_dots = ctx.saved_tensors
        batch, _, height, width = value.shape
        shape = (batch, height, width)
        taps = _to_rows(modulation)
        index, weight, weight_dy, weight_dx = _corners_and_slopes(offset, ctx.kernel_size)
        query_rows, grad_rows = _to_rows(query), _to_rows(grad)

        def per_tap(corners: Tensor) -> Tensor:  # (M, 4K) -> (M, K)
            return corners.view(*taps.shape, 4).sum(-1)

        value_dots = _row_dots(grad_rows, _to_rows(value), index)  # (M, 4K): grad . each neighbouring value row
        sampled_key, sampled_value = per_tap(key_dots * weight), per_tap(value_dots * weight)
        grad_affinity = sampled_value * taps
        grad_logits = affinity * (grad_affinity - (affinity * grad_affinity).sum(1, keepdim=True))
        grad_taps = grad_logits * sampled_key + affinity * sampled_value
        # what one unit of bilinear weight changes, per corner
        corner_dots = _per_corner(grad_logits * taps) * key_dots + _per_corner(affinity * taps) * value_dots
        grad_y, grad_x = per_tap(corner_dots * weight_dy), per_tap(corner_dots * weight_dx)
        grad_offset = torch.stack((grad_y, grad_x), dim=2).flatten(1)  # (M, 2K)

        key_weight = _per_corner(grad_logits * taps) * weight
        grad_query = _weighted_rows(_to_rows(key), index, key_weight)
        order, positions, ends = _by_row(index, batch * height * width)
        grad_key = _weighted_rows(query_rows, positions, key_weight.flatten()[order], ends)
        value_weight = _per_corner(affinity * taps) * weight
        grad_value = _weighted_rows(grad_rows, positions, value_weight.flatten()[order], ends)
        grads = (grad_query, grad_key, grad_value, grad_offset, grad_taps)
        return (*(_to_map(rows, shape) for rows in grads), None)


def _to_rows(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N*H*W, C), contiguous; no copy where the map is channels-last already."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).contiguous()


def _to_map(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(N*H*W, C) -> (N, C, H, W), channels-last."""
    return rows.view(*shape, -1).permute(0, 3, 1, 2)


def _per_corner(taps: Tensor) -> Tensor:
    """(M, K) -> (M, 4K): each tap's number for its four corners."""
    return taps.repeat_interleave(4, dim=1)


def _corners(offset: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    index, weight, _, _ = _corners_and_slopes(offset, kernel_size)
    return index, weight


def _corners_and_slopes(offset: Tensor, kernel_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row indices into the (N*H*W, C) matrix, bilinear weights and their slopes, each (M, 4K)."""
    batch, _, height, width = offset.shape
    corners = bilinear_corners(*sampling_positions(offset, kernel_size), height, width)
    index, *weights = (part.permute(0, 3, 4, 1, 2).reshape(batch * height * width, -1) for part in corners)
    image = torch.arange(batch).repeat_interleave(height * width) * (height * width)
    return index + image[:, None], weights[0], weights[1], weights[2]


def _weighted_rows(rows: Tensor, index: Tensor, weight: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Sum of ``weight`` times rows[index] over each bag: (M, J) indices, or flat ones with M bag ``offsets``."""
    return F.embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weight)


def _row_dots(left: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """left[m] . rows[index[m, j]] for (M, J) indices."""
    positions, samples = index.shape
    bags = torch.arange(positions)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left, rows, index.flatten(), bags * samples, bags.repeat_interleave(samples), 0
    )
    return dots.view(positions, samples)


def _by_row(index: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The samples sorted by the row they touch, to turn a scatter into a gather.

    Returns the sorting order of the flat samples, the position (bag) each sorted sample came from, and the
    start of each of the ``rows`` runs.
    """
    flat, order = index.flatten().sort(stable=True)
    starts = torch.searchsorted(flat, torch.arange(rows))
    return order, order // index.shape[1], starts
