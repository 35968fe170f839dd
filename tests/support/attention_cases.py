"""Inputs of sampled attention, and how results of its paths are compared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddsm_zoo.ops import sampled_attention

NAMES = ("query", "key", "value", "offset", "modulation")
PATHS = pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "channels last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "one image expanded": lambda tensor: tensor[:1].expand_as(tensor),
    "one column expanded": lambda tensor: tensor[..., :1].expand_as(tensor),
    "every second column": lambda tensor: tensor.repeat_interleave(2, dim=3)[..., ::2],
    "transposed": lambda tensor: tensor.mT.contiguous().mT,
}


def random_case(
    batch: int = 2,
    key_channels: int = 3,
    value_channels: int = 5,
    size: tuple[int, int] = (4, 6),
    kernel_size: int = 3,
    *,
    spread: int = 2,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Query, key, value, offset and modulation; no tap within 0.1 of an integer, where the slope jumps."""
    taps = kernel_size**2
    whole = torch.randint(-spread, spread + 1, (batch, 2 * taps, *size))
    return [
        torch.randn(batch, key_channels, *size, dtype=dtype),
        torch.randn(batch, key_channels, *size, dtype=dtype),
        torch.randn(batch, value_channels, *size, dtype=dtype),
        whole + 0.1 + 0.8 * torch.rand(batch, 2 * taps, *size, dtype=dtype),
        torch.rand(batch, taps, *size, dtype=dtype),
    ]


def outputs_and_gradients(tensors: list[Tensor], kernel_size: int, backend: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = sampled_attention(*leaves, kernel_size=kernel_size, backend=backend)
    upstream = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return out.detach(), torch.autograd.grad(out, leaves, upstream)


def assert_same(actual: tuple[Tensor, tuple[Tensor, ...]], expected: tuple[Tensor, tuple[Tensor, ...]]) -> None:
    """Outputs within 1e-4, gradients within a thousandth of the largest."""
    torch.testing.assert_close(actual[0].double(), expected[0].double(), atol=1e-4, rtol=1e-4)
    for name, gradient, target in zip(NAMES, actual[1], expected[1], strict=True):
        error = (gradient.double() - target.double()).abs().max()
        assert error <= 1e-3 * target.abs().max() + 1e-6, f"gradient of {name} is off by {error}"
