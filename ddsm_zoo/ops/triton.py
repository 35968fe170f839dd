"""Sampled attention on a GPU: one fused Triton kernel for the forward pass, one for the backward pass.

A program works on a block of positions. Forward, it reads the four neighbors of the key for each tap in turn, forms
the logit, and adds the four neighbors of the value under an online softmax. Nothing of size K leaves the chip.
Backward, it repeats this with the known logarithm of the softmax's denominator, and adds to the gradients of key and
value atomically. All arithmetic is in float32 for any type of the tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

from ddsm_zoo.ops import reference
from ddsm_zoo.ops.rows import map_shape, to_map, to_rows

# Elements of a block of rows. More would spill registers, fewer would leave a warp idle.
BLOCK = 1024


@triton.jit
def _coordinate(pixel, tap_shift, offset, side):
    """Return a tap's coordinate on one axis, clamped to two pixels outside the map, and a mask of those not clamped.

    NaN falls outside. The offset has a gradient only where its coordinate is not clamped.
    """
    position = pixel.to(tl.float32) + tap_shift + offset.to(tl.float32)
    free = (position > -2.0) & (position < side + 1.0)
    position = tl.where(position == position, position, -2.0)
    return tl.minimum(tl.maximum(position, -2.0), side + 1.0), free


@triton.jit
def _neighbor(y, x, corner: tl.constexpr, image, live, height, width):
    """Return a corner's row number, a mask of corners on the map, its bilinear weight, and its slopes by y and x."""
    lower: tl.constexpr = corner // 2
    right: tl.constexpr = corner % 2
    top, left = tl.floor(y), tl.floor(x)
    row, column = top.to(tl.int32) + lower, left.to(tl.int32) + right
    inside = live & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    weight_y = y - top if lower else 1.0 - (y - top)
    weight_x = x - left if right else 1.0 - (x - left)
    slope_y = weight_x if lower else -weight_x
    slope_x = weight_y if right else -weight_y
    index = (image * height + row).to(tl.int64) * width + column
    on_map = inside.to(tl.float32)
    return index, inside, weight_y * weight_x * on_map, slope_y * on_map, slope_x * on_map


@triton.jit
def _read(rows, index, live, columns, channels):
    """Read the rows ``index`` of a matrix with ``channels`` columns, as float32; zero where not live."""
    mask = live[:, None] & (columns < channels)[None, :]
    return tl.load(rows + index[:, None] * channels + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _tap(offset, modulation, position, live, tap, row, column, height, width, kernel_size: tl.constexpr):
    """Return a tap's coordinates, its modulation, and for each axis a mask of coordinates that are not clamped."""
    taps: tl.constexpr = kernel_size * kernel_size
    shift = offset + position * (2 * taps) + 2 * tap
    dy = tl.load(shift, mask=live, other=0.0)
    dx = tl.load(shift + 1, mask=live, other=0.0)
    strength = tl.load(modulation + position * taps + tap, mask=live, other=0.0).to(tl.float32)
    y, free_y = _coordinate(row, tap // kernel_size - kernel_size // 2, dy, height)
    x, free_x = _coordinate(column, tap % kernel_size - kernel_size // 2, dx, width)
    return y, x, strength, free_y, free_x


@triton.jit
def _forward_kernel(
    query, key, value, offset, modulation, out, log_sum,
    positions, height, width, key_channels, value_channels,
    kernel_size: tl.constexpr, block: tl.constexpr, key_block: tl.constexpr, value_block: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    live = position < positions
    image, place = (position // (height * width)).to(tl.int32), (position % (height * width)).to(tl.int32)
    row, column = place // width, place % width
    key_columns, value_columns = tl.arange(0, key_block), tl.arange(0, value_block)
    query_tile = _read(query, position, live, key_columns, key_channels)

    largest = tl.full((block,), float("-inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    sums = tl.zeros((block, value_block), tl.float32)
    for tap in range(kernel_size * kernel_size):
        y, x, strength, _, _ = _tap(offset, modulation, position, live, tap, row, column, height, width, kernel_size)
        sampled_key = tl.zeros((block, key_block), tl.float32)
        sampled_value = tl.zeros((block, value_block), tl.float32)
        for corner in tl.static_range(4):
            index, inside, weight, _, _ = _neighbor(y, x, corner, image, live, height, width)
            sampled_key += weight[:, None] * _read(key, index, inside, key_columns, key_channels)
            sampled_value += weight[:, None] * _read(value, index, inside, value_columns, value_channels)
        logit = tl.sum(query_tile * sampled_key, 1) * strength
        larger = tl.maximum(largest, logit)
        # while all logits are -inf, because of an infinite key, the difference from the largest would be NaN
        origin = tl.where(larger == float("-inf"), 0.0, larger)
        rescale, weight_of_tap = tl.exp(largest - origin), tl.exp(logit - origin)
        total = total * rescale + weight_of_tap
        sums = sums * rescale[:, None] + (weight_of_tap * strength)[:, None] * sampled_value
        largest = larger
    result = sums / total[:, None]
    mask = live[:, None] & (value_columns < value_channels)[None, :]
    tl.store(out + position[:, None] * value_channels + value_columns[None, :], result, mask=mask)
    tl.store(log_sum + position, largest + tl.log(total), mask=live)


@triton.jit
def _backward_kernel(
    query, key, value, offset, modulation, out, log_sum, grad,
    grad_query, grad_key, grad_value, grad_offset, grad_modulation,
    positions, height, width, key_channels, value_channels,
    kernel_size: tl.constexpr, block: tl.constexpr, key_block: tl.constexpr, value_block: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    live = position < positions
    image, place = (position // (height * width)).to(tl.int32), (position % (height * width)).to(tl.int32)
    row, column = place // width, place % width
    key_columns, value_columns = tl.arange(0, key_block), tl.arange(0, value_block)
    query_tile = _read(query, position, live, key_columns, key_channels)
    grad_tile = _read(grad, position, live, value_columns, value_channels)
    # the softmax's own share of every tap's gradient: the mean of the affinities' gradients
    mean = tl.sum(grad_tile * _read(out, position, live, value_columns, value_channels), 1)
    log_total = tl.load(log_sum + position, mask=live, other=0.0)

    query_sums = tl.zeros((block, key_block), tl.float32)
    taps: tl.constexpr = kernel_size * kernel_size
    for tap in range(taps):
        y, x, strength, free_y, free_x = _tap(
            offset, modulation, position, live, tap, row, column, height, width, kernel_size
        )
        sampled_key = tl.zeros((block, key_block), tl.float32)
        zero = tl.zeros((block,), tl.float32)
        key_dot, key_dy, key_dx = zero, zero, zero
        value_dot, value_dy, value_dx = zero, zero, zero
        for corner in tl.static_range(4):
            index, inside, weight, slope_y, slope_x = _neighbor(y, x, corner, image, live, height, width)
            key_tile = _read(key, index, inside, key_columns, key_channels)
            sampled_key += weight[:, None] * key_tile
            dot = tl.sum(query_tile * key_tile, 1)
            key_dot, key_dy, key_dx = key_dot + weight * dot, key_dy + slope_y * dot, key_dx + slope_x * dot
            dot = tl.sum(grad_tile * _read(value, index, inside, value_columns, value_channels), 1)
            value_dot, value_dy, value_dx = value_dot + weight * dot, value_dy + slope_y * dot, value_dx + slope_x * dot
        affinity = tl.exp(key_dot * strength - log_total)
        grad_logit = affinity * (value_dot * strength - mean)
        to_key, to_value = grad_logit * strength, affinity * strength
        query_sums += to_key[:, None] * sampled_key
        shift = grad_offset + position * (2 * taps) + 2 * tap
        tl.store(shift, tl.where(free_y, to_key * key_dy + to_value * value_dy, 0.0), mask=live)
        tl.store(shift + 1, tl.where(free_x, to_key * key_dx + to_value * value_dx, 0.0), mask=live)
        tl.store(grad_modulation + position * taps + tap, grad_logit * key_dot + affinity * value_dot, mask=live)
        for corner in tl.static_range(4):
            index, inside, weight, _, _ = _neighbor(y, x, corner, image, live, height, width)
            target = grad_key + index[:, None] * key_channels + key_columns[None, :]
            mask = inside[:, None] & (key_columns < key_channels)[None, :]
            tl.atomic_add(target, (to_key * weight)[:, None] * query_tile, mask=mask)
            target = grad_value + index[:, None] * value_channels + value_columns[None, :]
            mask = inside[:, None] & (value_columns < value_channels)[None, :]
            tl.atomic_add(target, (to_value * weight)[:, None] * grad_tile, mask=mask)
    mask = live[:, None] & (key_columns < key_channels)[None, :]
    tl.store(grad_query + position[:, None] * key_channels + key_columns[None, :], query_sums, mask=mask)


@library.custom_op("ddsm_zoo::sampled_attention", mutates_args=())
def sampled_attention(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
) -> tuple[Tensor, Tensor]:
    """Compute `ddsm_zoo.ops.sampled_attention` and the log of the softmax's denominator, (N, H, W) in float32."""
    rows = [to_rows(tensor) for tensor in (query, key, value, offset, modulation)]
    out = torch.empty_like(rows[2])
    log_sum = out.new_empty(len(out), dtype=torch.float32)
    _launch(_forward_kernel, (*rows, out, log_sum), value, query.shape[1], kernel_size)
    return to_map(out, map_shape(value)), log_sum.view(map_shape(value))


@sampled_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(value, memory_format=torch.channels_last)
    return out, value.new_empty(map_shape(value), dtype=torch.float32)


@library.custom_op("ddsm_zoo::sampled_attention_backward", mutates_args=())
def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    modulation: Tensor,
    out: Tensor,
    log_sum: Tensor,
    grad: Tensor,
    kernel_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = [to_rows(tensor) for tensor in (query, key, value, offset, modulation)]
    grads = [torch.empty_like(rows) for rows in inputs]
    grads[1:3] = (torch.zeros_like(rows, dtype=torch.float32) for rows in inputs[1:3])
    _launch(
        _backward_kernel,
        (*inputs, to_rows(out), log_sum.flatten(), to_rows(grad), *grads),
        value,
        query.shape[1],
        kernel_size,
    )
    shape = map_shape(value)
    to_query, to_key, to_value, to_offset, to_modulation = (to_map(rows.to(value.dtype), shape) for rows in grads)
    return to_query, to_key, to_value, to_offset, to_modulation


@_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    modulation: Tensor,
    out: Tensor,
    log_sum: Tensor,
    grad: Tensor,
    kernel_size: int,
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(tensor, memory_format=torch.channels_last)
        for tensor in (query, key, value, offset, modulation)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.kernel_size = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, out, log_sum = ctx.saved_tensors
    # gradients are enabled here if the caller wants gradients of gradients, which the kernel cannot give
    if torch.is_grad_enabled():
        return (*reference.gradients(grad, *tensors, kernel_size=ctx.kernel_size), None)
    return (*_backward(*tensors, out, log_sum, grad, ctx.kernel_size), None)


sampled_attention.register_autograd(_differentiate, setup_context=_save)


def channel_block(channels: int) -> int:
    """Return the width of the tile that holds the channels: a power of 2, at least 4, since Triton 3.6 fails at 1."""
    block: int = triton.next_power_of_2(max(channels, 4))
    return block


def _launch(kernel: Any, tensors: tuple[Tensor, ...], value: Tensor, key_channels: int, kernel_size: int) -> None:
    batch, height, width = map_shape(value)
    positions, value_channels = batch * height * width, value.shape[1]
    key_block, value_block = channel_block(key_channels), channel_block(value_channels)
    block = max(4, min(64, BLOCK // max(key_block, value_block)))
    with torch.cuda.device_of(value):  # Triton launches on the current device, wherever the tensors are
        kernel[(triton.cdiv(positions, block),)](
            *tensors, positions, height, width, key_channels, value_channels,
            kernel_size=kernel_size, block=block, key_block=key_block, value_block=value_block,
        )  # fmt: skip
