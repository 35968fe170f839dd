"""Where the taps fall: sampling positions and their four bilinear neighbours."""

from __future__ import annotations

import torch
from torch import Tensor


def sampling_positions(offset: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Row and column coordinates p + p_n + d_n of every tap, each (N, K, H, W), in pixels.

    ``offset`` is (N, 2K, H, W), (dy, dx) for each tap. Non-finite offsets fall outside the map.
    """
    height, width = offset.shape[-2:]
    taps = kernel_size**2
    device, dtype = offset.device, offset.dtype
    radius = kernel_size // 2
    tap = torch.arange(taps, device=device)
    tap_row = (tap // kernel_size - radius).to(dtype).view(1, taps, 1, 1)
    tap_column = (tap % kernel_size - radius).to(dtype).view(1, taps, 1, 1)
    row = torch.arange(height, device=device, dtype=dtype).view(1, 1, height, 1)
    column = torch.arange(width, device=device, dtype=dtype).view(1, 1, 1, width)
    # A position two pixels outside has four neighbours outside, so clamping to there changes no sample
    # and keeps the integer conversion that follows defined for huge and infinite offsets.
    y = torch.nan_to_num(row + tap_row + offset[:, 0::2], nan=-2.0).clamp(-2.0, height + 1.0)
    x = torch.nan_to_num(column + tap_column + offset[:, 1::2], nan=-2.0).clamp(-2.0, width + 1.0)
    return y, x


def bilinear_corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four pixels around each position and what is needed to weigh and to differentiate them.

    Takes (N, K, H, W) coordinates. Returns, each (N, K, 4, H, W): ``index``, the flat pixel index
    row * width + column (0 where the pixel is outside); ``weight``, the bilinear weight (0 outside); and
    ``weight_dy``, ``weight_dx``, its derivatives by y and x. Corners run (top left, top right, bottom left,
    bottom right).
    """
    top, left = y.floor(), x.floor()
    below, right = y - top, x - left
    above, before = 1 - below, 1 - right
    rows = torch.stack((top, top, top + 1, top + 1), dim=2)
    columns = torch.stack((left, left + 1, left, left + 1), dim=2)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # in integers: a float32 cannot count the pixels of a map above 2**24
    index = torch.where(inside, rows.long() * width + columns.long(), 0)
    weight = torch.stack((above * before, above * right, below * before, below * right), dim=2) * inside
    weight_dy = torch.stack((-before, -right, before, right), dim=2) * inside
    weight_dx = torch.stack((-above, above, -below, below), dim=2) * inside
    return index, weight, weight_dy, weight_dx
