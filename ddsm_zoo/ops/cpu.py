"""Sampled attention on the CPU, without storing the sampled features.

In channels-last memory every pixel is one contiguous row. A sampled value is then a weighted sum of rows, which
``embedding_bag`` computes in one pass. A sampled logit is a weighted sum of dot products between the query's row and
four rows of the key. Those are some elements of a matrix product, which ``sampled_addmm`` computes.

Positions are processed a thousand or more at a time, each such chunk in one thread (`ddsm_zoo.ops.threads`). Indices
and weights of their 4K corners stay in the cache, and their memory does not grow with the map. Half precision is
computed in float32 and rounded at the end: gathering rows of half the size is no faster as long as they are in the
cache, and only float32 keeps the weights of the corners.

Two cases fall back to the reference. One is gradients that are differentiated again. The other is infinity or NaN among
the features: a corner outside the map is read as one inside with the weight 0, and 0 times these is NaN.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_zoo.ops import reference, threads
from ddsm_zoo.ops.grid import Neighbors, bounded, neighbors, outer, outer_sum, tap_grid
from ddsm_zoo.ops.rows import map_shape, row_view, to_map, to_rows

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
        _use_sparse_tensors()
        tensors = (query, key, value, offset, modulation)
        key_rows, value_rows = _full(to_rows(key)), _full(to_rows(value))
        query_rows, offset_rows, tap_rows = (row_view(tensor) for tensor in (query, offset, modulation))
        shape = map_shape(value)
        out = torch.empty_like(value_rows, dtype=value.dtype)
        chunks = _Chunks(offset_rows, kernel_size, shape)
        sums: list[Tensor] = []

        def attend(number: int) -> None:
            chunk = chunks[number]
            part = chunk.positions
            taps = _full(tap_rows[part].t())
            affinity = chunk.affinity(_row_dots(_full(query_rows[part]), key_rows, chunk.index), taps)
            rows = _weighted_rows(value_rows, chunk.index, chunk.spread(affinity * taps))
            sums.append(rows.sum())
            out[part] = rows

        threads.run(attend, len(chunks))
        if not _finite(*sums):
            return reference.sampled_attention(*tensors, kernel_size)
        return to_map(out, shape)

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
    query, key, value, offset, modulation = tensors
    key_rows, value_rows = _full(to_rows(key)), _full(to_rows(value))
    query_rows, offset_rows, tap_rows, grad_rows = (row_view(tensor) for tensor in (query, offset, modulation, grad))
    shape = map_shape(grad)
    grad_query, grad_offset, grad_taps = (grad.new_empty(rows.shape) for rows in (query_rows, offset_rows, tap_rows))
    grad_key, grad_value = torch.zeros_like(key_rows), torch.zeros_like(value_rows)
    chunks = _Chunks(offset_rows, kernel_size, shape)

    def differentiate(number: int) -> tuple[slice, Tensor, Tensor]:
        """Write the gradients at the chunk's positions. Return the sums for a range of rows of key and value."""
        chunk = chunks[number]
        part = chunk.positions
        queries, grads, taps = _full(query_rows[part]), _full(grad_rows[part]), _full(tap_rows[part].t())
        key_dots = _row_dots(queries, key_rows, chunk.index)
        value_dots = _row_dots(grads, value_rows, chunk.index)
        sampled_key, sampled_value = chunk.gather(key_dots), chunk.gather(value_dots)
        affinity = chunk.affinity(key_dots, taps)
        grad_affinity = sampled_value * taps
        grad_logits = affinity * (grad_affinity - (affinity * grad_affinity).sum(0))
        grad_taps[part] = (grad_logits * sampled_key + affinity * sampled_value).t()
        key_taps, value_taps = grad_logits * taps, affinity * taps
        grad_offset[part] = chunk.grad_offset(key_taps, key_dots, value_taps, value_dots).t()
        key_weight, value_weight = chunk.spread(key_taps), chunk.spread(value_taps)
        grad_query[part] = _weighted_rows(key_rows, chunk.index, key_weight)
        scatter = _Scatter(chunk.index)
        return scatter.rows, scatter.sum(queries, key_weight), scatter.sum(grads, value_weight)

    def add(sums: tuple[slice, Tensor, Tensor]) -> None:
        rows, key_sums, value_sums = sums
        grad_key[rows] += key_sums
        grad_value[rows] += value_sums

    # in the order of the chunks, which makes the gradients the same in every run
    threads.run(differentiate, len(chunks), add)
    grads = (grad_query, grad_key, grad_value, grad_offset, grad_taps)
    return [to_map(rows.to(grad.dtype), shape) for rows in grads]


def _finite(*tensors: Tensor) -> bool:
    """Return True if the sum of each tensor is finite. The check costs almost nothing compared with the operation."""
    return all(bool(tensor.sum(dtype=torch.float32).isfinite()) for tensor in tensors)


def _full(rows: Tensor) -> Tensor:
    """Convert rows to contiguous float32. Rows in float64 stay in it."""
    return rows.contiguous().to(torch.promote_types(rows.dtype, torch.float32))


class _Chunks:
    """Chunks of at most ``CHUNK`` corners, in the order of their positions."""

    def __init__(self, offset_rows: Tensor, kernel_size: int, shape: tuple[int, int, int]) -> None:
        self.offset_rows, self.kernel_size, self.shape = offset_rows, kernel_size, shape
        self.step = max(1, CHUNK // (4 * kernel_size**2))

    def __len__(self) -> int:
        return math.ceil(len(self.offset_rows) / self.step)

    def __getitem__(self, number: int) -> _Chunk:
        start = number * self.step
        positions = slice(start, min(start + self.step, len(self.offset_rows)))
        return _chunk(positions, self.offset_rows, self.kernel_size, self.shape)


@dataclass(frozen=True)
class _Chunk:
    """Corners around the K taps of m neighboring positions.

    ``index`` is (m, 4, K), so that a position's corners are one bag. It holds row numbers of the whole batch. In all
    other tensors the positions come last, because operators are slow over a short last dimension.
    """

    positions: slice
    rows: Neighbors
    columns: Neighbors
    index: Tensor
    weight: Tensor

    def gather(self, dots: Tensor) -> Tensor:
        """Average numbers of the corners (4, K, m) bilinearly at each tap (K, m)."""
        return (dots * self.weight).sum(0)

    def spread(self, taps: Tensor) -> Tensor:
        """Multiply numbers of the taps (K, m) by the weights of their corners, in the shape of ``index``."""
        return (taps * self.weight).permute(2, 0, 1).contiguous()

    def affinity(self, key_dots: Tensor, taps: Tensor) -> Tensor:
        """Compute the softmax of Eq. 2 from the dot products of queries and corners: (4, K, m) -> (K, m)."""
        return (self.gather(key_dots) * taps).softmax(dim=0)

    def grad_offset(self, key_taps: Tensor, key_dots: Tensor, value_taps: Tensor, value_dots: Tensor) -> Tensor:
        """Compute the gradient of the offsets (2K, m) from the gradient of each corner's weight."""
        grad_weight = key_taps * key_dots + value_taps * value_dots
        slopes = (outer(self.rows.slope(), self.columns.weight), outer(self.rows.weight, self.columns.slope()))
        return torch.stack([(grad_weight * slope).sum(0) for slope in slopes], dim=1).flatten(0, 1)


def _chunk(positions: slice, offset_rows: Tensor, kernel_size: int, shape: tuple[int, int, int]) -> _Chunk:
    _, height, width = shape
    # half the memory to read, if it can count the rows
    index_dtype = torch.int32 if len(offset_rows) < 2**31 else torch.int64
    offset = _full(offset_rows[positions].t())
    tap_row, tap_column = (taps[:, None] for taps in tap_grid(kernel_size, offset.device, offset.dtype))
    pixel = torch.arange(positions.start, positions.stop, dtype=index_dtype, device=offset_rows.device)
    image, place = pixel // (height * width), pixel % (height * width)
    y = bounded(place // width + tap_row + offset[0::2], height)
    x = bounded(place % width + tap_column + offset[1::2], width)
    rows, columns = neighbors(y, height, index_dtype), neighbors(x, width, index_dtype)
    index = outer_sum(rows.pixel * width + image * (height * width), columns.pixel)
    return _Chunk(positions, rows, columns, index.permute(2, 0, 1).contiguous(), outer(rows.weight, columns.weight))


class _Scatter:
    """Transpose of gathering rows by a chunk's ``index``. Sorted by the target row, it becomes a gather."""

    def __init__(self, index: Tensor) -> None:
        touched, self.order = index.flatten().sort()
        first, last = int(touched[0]), int(touched[-1])
        self.rows = slice(first, last + 1)
        bags = torch.arange(len(index), dtype=touched.dtype, device=touched.device)
        self.source = bags.repeat_interleave(index[0].numel()).index_select(0, self.order)
        between = torch.arange(first, last + 1, dtype=touched.dtype, device=touched.device)
        self.starts = torch.searchsorted(touched, between).to(touched.dtype)

    def sum(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Sum weight[m, j] * rows[m] over all index[m, j] that are the same. ``weight`` has the bags of ``index``."""
        return _weighted_rows(rows, self.source, weight.flatten().index_select(0, self.order), self.starts)


def _weighted_rows(rows: Tensor, index: Tensor, weight: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Sum ``weight`` times rows[index] over each bag: of shape (m, ...), or flat with bag ``offsets``."""
    if offsets is None:
        index, weight = index.flatten(1), weight.flatten(1)
    return F.embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weight)


def _row_dots(left: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Compute left[m] . rows[index[m, ...]] for ``index`` (m, 4, K), as (4, K, m)."""
    samples = index[0].numel()
    if len(rows) < samples:  # torch expects no more elements than the matrix has
        rows = F.pad(rows, (0, 0, 0, samples - len(rows)))
    bags = torch.arange(len(index) + 1, dtype=index.dtype, device=index.device) * samples
    # a matrix with the bags as its rows, of which only the elements at ``index`` are computed
    zeros = left.new_zeros(index.numel())
    dots = torch.sparse_csr_tensor(
        bags, index.flatten(), zeros, (len(left), len(rows)), device=left.device, check_invariants=False
    )
    values: Tensor = torch.sparse.sampled_addmm(dots, left, rows.t(), beta=0).values()
    return values.view(index.shape).permute(1, 2, 0).contiguous()


@functools.cache
def _use_sparse_tensors() -> None:
    """Trigger and suppress the warning that torch gives once per process for its first sparse CSR tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu")
