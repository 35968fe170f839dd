"""Sampling positions of the taps and their four bilinear neighbors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def sampling_positions(offset: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Compute the row and column coordinates p + p_n + d_n of every tap, each (N, K, H, W), in pixels.

    ``offset`` is (N, 2K, H, W), (dy, dx) for each tap. Non-finite offsets fall outside the map.
    """
    height, width = offset.shape[-2:]
    device, dtype = offset.device, offset.dtype
    tap_row, tap_column = (taps.view(1, -1, 1, 1) for taps in tap_grid(kernel_size, device, dtype))
    row = torch.arange(height, device=device, dtype=dtype).view(1, 1, height, 1)
    column = torch.arange(width, device=device, dtype=dtype).view(1, 1, 1, width)
    return bounded(row + tap_row + offset[:, 0::2], height), bounded(column + tap_column + offset[:, 1::2], width)


def tap_grid(kernel_size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the row and column of each tap p_n of the k x k grid around its center, each (K,), row by row."""
    tap = torch.arange(kernel_size**2, device=device)
    radius = kernel_size // 2
    return (tap // kernel_size - radius).to(dtype), (tap % kernel_size - radius).to(dtype)


def bounded(coordinate: Tensor, side: int) -> Tensor:
    """Clamp coordinates to at most two pixels outside the map. NaN goes before its start.

    All four neighbors of a position two pixels outside are outside, so no sample changes. Without the clamp, the later
    conversion to integers would be undefined for huge and infinite offsets.
    """
    return torch.nan_to_num(coordinate, nan=-2.0).clamp(-2.0, side + 1.0)


class Corners(NamedTuple):
    """Four pixels around each sampling position: top left, top right, bottom left, bottom right; each (4, ...).

    ``pixel`` is the flat pixel index row * width + column. ``weight`` is the bilinear weight. A pixel outside the map
    has the weight 0 and the index of a pixel inside or, if the map has a margin, of the nearest pixel of the margin.
    """

    pixel: Tensor
    weight: Tensor


def bilinear_corners(y: Tensor, x: Tensor, size: tuple[int, int], *, margin: int = 0) -> Corners:
    """Compute the corners that sample a map of ``size`` (H, W) at bounded coordinates (...).

    The pixels are counted in the map with ``margin`` pixels added on each side.
    """
    height, width = size
    rows, columns = neighbors(y, height, margin=margin), neighbors(x, width, margin=margin)
    return Corners(
        pixel=outer_sum(rows.pixel * (width + 2 * margin), columns.pixel), weight=outer(rows.weight, columns.weight)
    )


class Neighbors(NamedTuple):
    """Pixels before and after each coordinate along one axis, and their weights.

    The new first dimension has size 2. ``inside`` is 1 for pixels of the map and 0 for others.
    """

    pixel: Tensor
    weight: Tensor
    inside: Tensor

    def slope(self) -> Tensor:
        """Compute the derivative of ``weight`` by the coordinate."""
        before, after = self.inside
        return torch.stack((-before, after))


def neighbors(coordinate: Tensor, side: int, index_dtype: torch.dtype = torch.int64, *, margin: int = 0) -> Neighbors:
    """Find the pixels on both sides of each bounded coordinate along an axis of ``side`` pixels."""
    before = coordinate.floor()
    fraction = coordinate - before
    pixels = torch.stack((before, before + 1))
    inside = (pixels == pixels.clamp(0, side - 1)).to(coordinate.dtype)
    weights = torch.stack((1 - fraction, fraction)) * inside
    # in integers before they are combined: a float32 cannot count the pixels of a map above 2**24
    return Neighbors(pixels.clamp(-margin, side - 1 + margin).to(index_dtype) + margin, weights, inside)


def outer(rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply each of two rows (2, ...) by each of two columns (2, ...) to (4, ...)."""
    return (rows.unsqueeze(1) * columns.unsqueeze(0)).flatten(0, 1)


def outer_sum(rows: Tensor, columns: Tensor) -> Tensor:
    """Add each of two rows to each of two columns, as `outer` multiplies them."""
    return (rows.unsqueeze(1) + columns.unsqueeze(0)).flatten(0, 1)
