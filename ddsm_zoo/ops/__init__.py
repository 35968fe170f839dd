"""Sampled attention: the operation behind both affinities of DDSM."""

from __future__ import annotations

import logging
import math
import os
from typing import Literal, get_args

import torch
from torch import Tensor

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.ops import cpu, reference, traced
from ddsm_zoo.ops.traced import is_traced

__all__ = ["Backend", "sampled_attention"]

Backend = Literal["auto", "reference", "cpu", "triton"]

_FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_logger = logging.getLogger(__name__)


def sampled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    modulation: Tensor,
    *,
    kernel_size: int,
    backend: Backend = "auto",
) -> Tensor:
    """Attend, at every position, to K = kernel_size**2 positions sampled around it (Eqs. 1 to 3 of the paper)::

        out[p] = sum_n softmax_n(query[p] . m_n[p] key(p + p_n + d_n)) * m_n[p] value(p + p_n + d_n)

    p_n runs over the k x k grid around p row by row, d_n[p] is the offset and m_n[p] the modulation of tap n. Sampling
    is bilinear between pixel centers and zero outside the map, as in ``torchvision.ops.deform_conv2d``. Of the four
    pixels around a sample, those inside the map take part even with a weight of 0, so infinity and NaN propagate.

    Args:
        query: Queries (N, Ck, H, W).
        key: Keys (N, Ck, H, W).
        value: Values (N, Cv, H, W).
        offset: Offsets (N, 2K, H, W) in pixels, (dy, dx) for each tap in turn.
        modulation: Modulations (N, K, H, W), one factor for each tap.
        kernel_size: Odd side k of the grid.
        backend: "reference" is the definition in plain torch, for any dtype and device, differentiable twice. "cpu"
            gathers rows and "triton" is one fused kernel for CUDA. Both take float32, bfloat16 and float16, compute in
            float32 and never build a (N, C, K, H, W) tensor. If you differentiate their gradients again
            (``create_graph=True``, transforms of torch.func), the reference computes them. "auto" takes "cpu" on the
            CPU, "triton" on a GPU where Triton is installed, and the reference otherwise. A call that is compiled,
            traced or exported, and does not take "triton", uses a few operators that ONNX has.

    Returns:
        Attended values (N, Cv, H, W), in the dtype of ``value``.

    Raises:
        ValueError: Shapes, dtypes or devices do not match, the kernel size is not odd, or the backend cannot run these
            tensors.

    Examples:
        Equal keys, no offsets: every position averages its 3 x 3 neighborhood, with zeros outside the map.

        >>> import torch
        >>> from ddsm_zoo.ops import sampled_attention
        >>> query, key, value = torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 4, 6), torch.ones(1, 5, 4, 6)
        >>> offset, modulation = torch.zeros(1, 18, 4, 6), torch.ones(1, 9, 4, 6)
        >>> out = sampled_attention(query, key, value, offset, modulation, kernel_size=3)
        >>> out.shape
        torch.Size([1, 5, 4, 6])
        >>> round(float(out[0, 0, 0, 0]) * 9), round(float(out[0, 0, 1, 1]) * 9)
        (4, 9)
    """
    _check(query, key, value, offset, modulation, kernel_size, backend)
    if not is_traced() and len(value) == 0:  # an empty batch, which the kernels do not take
        return reference.sampled_attention(query, key, value, offset, modulation, kernel_size)
    chosen = _fastest(value) if backend == "auto" else backend
    if chosen == "cpu":
        return cpu.sampled_attention(query, key, value, offset, modulation, kernel_size)
    if chosen == "triton" and not _transformed():
        # by its registered name, which torch.compile keeps as one node of its graph
        out: Tensor = torch.ops.ddsm_zoo.sampled_attention(query, key, value, offset, modulation, kernel_size)[0]
        return out
    if chosen == "traced":
        return traced.sampled_attention(query, key, value, offset, modulation, kernel_size)
    return reference.sampled_attention(query, key, value, offset, modulation, kernel_size)


def _fastest(value: Tensor) -> str:
    fast = value.dtype in _FAST_DTYPES
    if fast and value.device.type == "cuda" and _has_triton():
        return "triton"
    if is_traced():
        return "traced"
    return "cpu" if fast and value.device.type == "cpu" else "reference"


def _transformed() -> bool:
    """Return True inside a transform of torch.func, which does not support registered operations."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


_triton: list[bool] = []


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch gives it no type
def _has_triton() -> bool:
    """Return True if the Triton path can be loaded. If not, log one line, once."""
    if not _triton:
        try:
            from ddsm_zoo.ops import triton  # noqa: F401 - registers the operation
        except ImportError as error:
            _logger.info("Triton is not installed (%s): DDSM runs on the slower reference path", error)
            _triton.append(False)
        else:
            _triton.append(True)
    return _triton[0]


def _check(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int, backend: str
) -> None:
    if not isinstance(kernel_size, int) or isinstance(kernel_size, bool) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ArgumentError.of("kernel_size", kernel_size, "an odd number: 1, 3, 5, ...", shown=repr(kernel_size))
    tensors = {"query": query, "key": key, "value": value, "offset": offset, "modulation": modulation}
    for name, tensor in tensors.items():
        if tensor.dim() != 4:
            raise ArgumentError(
                f"{name} has shape {tuple(tensor.shape)}, expected 4 dimensions (N, C, H, W)",
                kind="array",
                name=name,
                got=tuple(tensor.shape),
            )
        if tensor.device != value.device:
            raise ArgumentError(
                f"{name} is on {tensor.device} and value on {value.device}, expected one device",
                kind="array",
                name=name,
                got=str(tensor.device),
                expected=str(value.device),
            )
        if tensor.dtype != value.dtype or not tensor.dtype.is_floating_point:
            raise ArgumentError(
                f"{name} is {tensor.dtype} and value {value.dtype}, expected one floating-point dtype",
                kind="array",
                name=name,
                got=str(tensor.dtype),
                expected=str(value.dtype) if value.dtype.is_floating_point else "a floating-point dtype",
            )
    batch, _, height, width = value.shape
    taps = kernel_size**2
    channels = {"query": query.shape[1], "key": query.shape[1], "offset": 2 * taps, "modulation": taps}
    for name, expected in channels.items():
        shape = (batch, expected, height, width)
        if tuple(tensors[name].shape) != shape:
            raise ArgumentError(
                f"{name} has shape {tuple(tensors[name].shape)}, expected {shape} beside value "
                f"{tuple(value.shape)} with kernel_size {kernel_size}",
                kind="array",
                name=name,
                got=tuple(tensors[name].shape),
                expected=shape,
            )
    for name, tensor in (("value", value), ("query", query)):
        if math.prod(tensor.shape[1:]) == 0:
            raise ArgumentError(
                f"{name} has shape {tuple(tensor.shape)}, expected at least one channel and one pixel",
                kind="array",
                name=name,
                got=tuple(tensor.shape),
            )
    _check_backend(value, backend)


def _check_backend(value: Tensor, backend: str) -> None:
    if backend not in get_args(Backend):
        expected = ", ".join(map(repr, get_args(Backend)))
        raise ArgumentError.of("backend", backend, f"one of {expected}", shown=repr(backend))
    if backend not in ("cpu", "triton"):
        return
    # Triton's interpreter, which the kernel's tests use, takes tensors on the CPU
    device = "cuda" if backend == "triton" and os.environ.get("TRITON_INTERPRET", "0") == "0" else "cpu"
    if value.device.type != device or value.dtype not in _FAST_DTYPES:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FAST_DTYPES)
        raise ArgumentError(
            f"backend {backend!r} takes {dtypes} tensors on {device}, got {value.dtype} on {value.device}; use 'auto'",
            name="backend",
            got=backend,
            expected="auto",
        )
    if backend == "triton" and not _has_triton():
        raise ArgumentError(
            "backend 'triton' needs the package triton, which is not installed; use 'auto'",
            kind="missing-package",
            name="triton",
        )
