"""Definition of sampled attention in plain torch: the oracle of the other paths."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_zoo.ops.grid import bilinear_corners, sampling_positions


def sampled_attention(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
) -> Tensor:
    """Compute `ddsm_zoo.ops.sampled_attention` by materializing the sampled keys and values."""
    sampled_key = sample(key, offset, modulation, kernel_size)  # (N, Ck, K, H, W)
    logits = torch.einsum("nchw,nckhw->nkhw", query, sampled_key)
    # half precision: the exponentials are summed in float32
    affinity = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(value.dtype)
    sampled_value = sample(value, offset, modulation, kernel_size)  # (N, Cv, K, H, W)
    # autocast turns products of float32 into half precision
    return torch.einsum("nkhw,nckhw->nchw", affinity, sampled_value).to(value.dtype)


def gradients(grad: Tensor, *tensors: Tensor, kernel_size: int) -> tuple[Tensor, ...]:
    """Compute the gradients of the five tensors from ``grad``, that of the output. All can be differentiated again."""
    operation = functools.partial(sampled_attention, kernel_size=kernel_size)
    found: tuple[Tensor, ...] = torch.func.vjp(operation, *tensors)[1](grad)
    return found


def sample(features: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int) -> Tensor:
    """Apply the sampler F of Eq. 1, (N, C, H, W) -> (N, C, K, H, W): tap n of position p is m_n x(p + p_n + d_n)."""
    batch, channels, height, width = features.shape
    taps = kernel_size**2
    # coordinates in half precision would be off by whole pixels
    y, x = sampling_positions(offset.to(torch.promote_types(offset.dtype, torch.float32)), kernel_size)
    index, weight = bilinear_corners(y, x, (height, width), margin=1)  # (4, N, K, H, W)
    # pixels outside are read as 0; with a weight of 0 alone, infinity and NaN at the border would give NaN
    pixels = F.pad(features, (1, 1, 1, 1)).flatten(2)  # (N, C, (H + 2)(W + 2))
    out = features.new_zeros(batch, channels, taps, height, width)
    for corner in range(4):
        flat = index[corner].flatten(1)[:, None].expand(-1, channels, -1)  # (N, C, K*H*W)
        gathered = pixels.gather(2, flat).view(batch, channels, taps, height, width)
        out = out + gathered * weight[corner, :, None].to(features.dtype)
    return out * modulation[:, None]
