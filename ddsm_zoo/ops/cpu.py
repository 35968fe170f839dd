"""Sampled attention on the CPU, without storing the sampled features.

In channels-last memory every pixel is one contiguous row. A sampled value is then a weighted sum of rows, which
``embedding_bag`` computes in one pass. A sampled logit is a weighted sum of dot products between the query's row and
four rows of the key, which the derivative of ``embedding_bag`` by its weights computes.

Positions are processed a few thousand at a time. Indices and weights of their 4K corners stay in the cache, and their
memory does not grow with the map. Half precision is computed in float32 and rounded at the end.

Two cases fall back to the reference. One is gradients that are differentiated again. The other is infinity or NaN among
the features: a corner outside the map is read as one inside with the weight 0, and 0 times these is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_zoo.ops import reference
from ddsm_zoo.ops.grid import bilinear_corners, bounded, tap_grid
from ddsm_zoo.ops.rows import map_shape, to_map, to_rows

# Corners of one chunk: 512 KiB for each of its tensors, which fit a core's cache together with the rows it reads
CHUNK = 2**17


def sampled_attention(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
) -> Tensor:
    """See `ddsm_zoo.ops.sampled_attention`."""
    out: Tensor = _SampledAttention.apply(query, key, value, offset, modulation, kernel_size)
    return out


class _SampledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
    ) -> Tensor:
        tensors = (query, key, value, offset, modulation)
        query_rows, key_rows, value_rows, offset_rows, taps = _full_rows(tensors)
        shape = map_shape(value)
        out = torch.empty_like(value_rows)
        for chunk in _chunks(offset_rows, kernel_size, shape):
            part = chunk.positions
            key_dots = _row_dots(query_rows[part], key_rows, chunk.index)
            affinity = chunk.affinity(key_dots, taps[part])
            out[part] = _weighted_rows(value_rows, chunk.index, chunk.spread(affinity * taps[part]))
        if not _finite(out):
            return reference.sampled_attention(*tensors, kernel_size)
        return to_map(out.to(value.dtype), shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 - as torch passes it
        *tensors, ctx.kernel_size = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Run a batch of batches as one longer batch."""
        maps = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(inputs[:-1], dims[:-1], strict=True)
        ]
        out = _SampledAttention.apply(*(tensor.flatten(0, 1) for tensor in maps), inputs[-1])
        return out.reshape(info.batch_size, -1, *out.shape[1:]), 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():  # enabled if the caller wants gradients of gradients
            grads = _gradients(grad, ctx.saved_tensors, ctx.kernel_size)
            if _finite(*grads):
                return (*grads, None)
        return (*reference.gradients(grad, *ctx.saved_tensors, kernel_size=ctx.kernel_size), None)


def _gradients(grad: Tensor, tensors: Sequence[Tensor], kernel_size: int) -> list[Tensor]:
    query_rows, key_rows, value_rows, offset_rows, taps, grad_rows = _full_rows((*tensors, grad))
    shape = map_shape(grad)
    grad_query, grad_offset, grad_taps = (torch.empty_like(rows) for rows in (query_rows, offset_rows, taps))
    grad_key, grad_value = torch.zeros_like(key_rows), torch.zeros_like(value_rows)
    for chunk in _chunks(offset_rows, kernel_size, shape):
        part = chunk.positions
        key_dots = _row_dots(query_rows[part], key_rows, chunk.index)
        value_dots = _row_dots(grad_rows[part], value_rows, chunk.index)
        sampled_key, sampled_value = chunk.gather(key_dots), chunk.gather(value_dots)
        affinity = chunk.affinity(key_dots, taps[part])
        grad_affinity = sampled_value * taps[part]
        grad_logits = affinity * (grad_affinity - (affinity * grad_affinity).sum(1, keepdim=True))
        grad_taps[part] = grad_logits * sampled_key + affinity * sampled_value
        key_taps, value_taps = grad_logits * taps[part], affinity * taps[part]
        grad_offset[part] = chunk.grad_offset(key_taps, key_dots, value_taps, value_dots)
        key_weight, value_weight = chunk.spread(key_taps), chunk.spread(value_taps)
        grad_query[part] = _weighted_rows(key_rows, chunk.index, key_weight)
        scatter = _Scatter(chunk.index)
        scatter.add(grad_key, query_rows[part], key_weight)
        scatter.add(grad_value, grad_rows[part], value_weight)
    grads = (grad_query, grad_key, grad_value, grad_offset, grad_taps)
    return [to_map(rows.to(grad.dtype), shape) for rows in grads]


def _finite(*tensors: Tensor) -> bool:
    """Return True if the sum of each tensor is finite. The check costs almost nothing compared with the operation."""
    return all(bool(tensor.sum(dtype=torch.float32).isfinite()) for tensor in tensors)


def _full_rows(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Convert to rows (`to_rows`) in float32, or in float64 if they come so."""
    return [to_rows(tensor).to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


@dataclass(frozen=True)
class _Chunk:
    """Corners around the K taps of m neighbouring positions.

    Each tensor is (m, 4, K), so that a position's corners are one bag. ``index`` holds row numbers of the whole batch.
    """

    positions: slice
    index: Tensor
    weight: Tensor
    weight_dy: Tensor
    weight_dx: Tensor

    def gather(self, dots: Tensor) -> Tensor:
        """Average numbers of the corners (m, 4, K) bilinearly at each tap (m, K)."""
        return (dots * self.weight).sum(1)

    def spread(self, taps: Tensor) -> Tensor:
        """Multiply numbers of the taps (m, K) by the weights of their corners (m, 4, K)."""
        return taps[:, None] * self.weight

    def affinity(self, key_dots: Tensor, taps: Tensor) -> Tensor:
        """Compute the softmax of Eq. 2 from the dot products of queries and corners: (m, 4, K) -> (m, K)."""
        return (self.gather(key_dots) * taps).softmax(dim=1)

    def grad_offset(self, key_taps: Tensor, key_dots: Tensor, value_taps: Tensor, value_dots: Tensor) -> Tensor:
        """Compute the gradient of the offsets (m, 2K) from the gradient of each corner's weight."""
        grad_weight = key_taps[:, None] * key_dots + value_taps[:, None] * value_dots
        slopes = (self.weight_dy, self.weight_dx)
        return torch.stack([(grad_weight * slope).sum(1) for slope in slopes], dim=-1).flatten(1)


def _chunks(offset_rows: Tensor, kernel_size: int, shape: tuple[int, int, int]) -> Iterator[_Chunk]:
    """Split the positions, in order, into chunks of at most ``CHUNK`` corners."""
    step = max(1, CHUNK // (4 * kernel_size**2))
    for start in range(0, len(offset_rows), step):
        yield _chunk(slice(start, min(start + step, len(offset_rows))), offset_rows, kernel_size, shape)


def _chunk(positions: slice, offset_rows: Tensor, kernel_size: int, shape: tuple[int, int, int]) -> _Chunk:
    _, height, width = shape
    # half the memory to read, if it can count the rows
    index_dtype = torch.int32 if len(offset_rows) < 2**31 else torch.int64
    tap_row, tap_column = tap_grid(kernel_size, offset_rows.device, offset_rows.dtype)
    pixel = torch.arange(positions.start, positions.stop, dtype=index_dtype, device=offset_rows.device)
    image, place = pixel // (height * width), pixel % (height * width)
    offset = offset_rows[positions]
    y = bounded((place // width)[:, None] + tap_row + offset[:, 0::2], height)
    x = bounded((place % width)[:, None] + tap_column + offset[:, 1::2], width)
    corners = bilinear_corners(y, x, (height, width), index_dtype)
    index, *weights = (part.transpose(0, 1).contiguous() for part in corners)
    return _Chunk(positions, index + (image * (height * width))[:, None, None], *weights)


class _Scatter:
    """Transpose of gathering rows by a chunk's ``index``. Sorted by the target row, it becomes a gather."""

    def __init__(self, index: Tensor) -> None:
        touched, self.order = index.flatten().sort()
        self.first, self.last = int(touched[0]), int(touched[-1])
        self.source = (self.order // index[0].numel()).int()
        between = torch.arange(self.first, self.last + 1, dtype=touched.dtype, device=touched.device)
        self.starts = torch.searchsorted(touched, between).int()

    def add(self, target: Tensor, rows: Tensor, weight: Tensor) -> None:
        """Add in place: target[index[m, j]] += weight[m, j] * rows[m]. ``weight`` has the bags of ``index``."""
        sums = _weighted_rows(rows, self.source, weight.flatten()[self.order], self.starts)
        target[self.first : self.last + 1] += sums


def _weighted_rows(rows: Tensor, index: Tensor, weight: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Sum ``weight`` times rows[index] over each bag: of shape (m, ...), or flat with bag ``offsets``."""
    if offsets is None:
        index, weight = index.flatten(1), weight.flatten(1)
    return F.embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weight)


def _row_dots(left: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Compute left[m] . rows[index[m, ...]], in the shape of ``index``."""
    samples = index[0].numel()
    bags = torch.arange(len(index), dtype=index.dtype, device=index.device)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left, rows, index.flatten(), bags * samples, bags.repeat_interleave(samples), 0
    )
    return dots.view(index.shape)
