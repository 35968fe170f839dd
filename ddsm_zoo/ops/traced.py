"""Sampled attention for compilers and exporters: few operations, all in ONNX, for any size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_zoo.ops.grid import sampling_positions


def is_traced() -> bool:
    """Return True if a compiler or exporter records the call. Code must then not branch on sizes."""
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return True
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch gives it no type
    return traced


def sampled_attention(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int
) -> Tensor:
    """Compute `ddsm_zoo.ops.sampled_attention` in one pass, by materializing the sampled keys and values."""
    sampled = sample(torch.cat((key, value), dim=1), offset, kernel_size) * modulation[:, None]
    sampled_key, sampled_value = sampled[:, : key.shape[1]], sampled[:, key.shape[1] :]
    logits = (query[:, :, None] * sampled_key).sum(dim=1)  # (N, K, H, W)
    # half precision: the exponentials are summed in float32
    affinity = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(value.dtype)
    out: Tensor = (affinity[:, None] * sampled_value).sum(dim=2)
    return out


def sample(features: Tensor, offset: Tensor, kernel_size: int) -> Tensor:
    """Sample x(p + p_n + d_n) at every tap: (N, C, H, W) and (N, 2K, H, W) -> (N, C, K, H, W)."""
    height, width = features.shape[-2:]
    # coordinates in half precision would be off by whole pixels
    full = torch.promote_types(offset.dtype, torch.float32)
    y, x = sampling_positions(offset.to(full), kernel_size)  # (N, K, H, W)
    # `grid_sample` counts from -1 at the first pixel's outer edge to 1 at the last one's
    taps = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1).unbind(1)
    # not `flatten`, from which a tracer would conclude that some sizes are impossible
    samples = F.grid_sample(features.to(full), torch.cat(taps, dim=1), align_corners=False)  # (N, C, K*H, W)
    return torch.unflatten(samples.to(features.dtype), 2, (kernel_size**2, height))
