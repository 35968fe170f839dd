"""Sampled attention: the one operation that both affinities of DDSM rest on."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ddsm_zoo.ops import cpu, reference

__all__ = ["Backend", "sampled_attention"]

Backend = Literal["auto", "reference", "cpu"]


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

    p_n runs over the k x k grid around p row by row, d_n[p] is the offset and m_n[p] the modulation of tap n.
    Sampling is bilinear between pixel centres and zero outside the map, as in ``torchvision.ops.deform_conv2d``.

    Args:
        query: (N, Ck, H, W).
        key: (N, Ck, H, W).
        value: (N, Cv, H, W).
        offset: (N, 2K, H, W), in pixels, (dy, dx) for each tap in turn.
        modulation: (N, K, H, W).
        kernel_size: the odd side k of the grid.
        backend: "reference" is the definition in plain torch: any dtype and device, exportable, differentiable
            twice. "cpu" gathers rows and never builds a (N, C, K, H, W) tensor. "auto" takes "cpu" for eager
            float32 tensors on the CPU and the reference otherwise.

    Returns:
        (N, Cv, H, W), in the dtype of ``value``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, an even kernel size, or a backend that
            cannot run these tensors.
    """
    _check(query, key, value, offset, modulation, kernel_size, backend)
    if backend == "cpu" or (backend == "auto" and _runs_on_cpu_path(value)):
        return cpu.sampled_attention(query, key, value, offset, modulation, kernel_size)
    return reference.sampled_attention(query, key, value, offset, modulation, kernel_size)


def _runs_on_cpu_path(value: Tensor) -> bool:
    eager = not (torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export())
    return eager and value.device.type == "cpu" and value.dtype == torch.float32


def _check(
    query: Tensor, key: Tensor, value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int, backend: str
) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}, expected an odd number: 1, 3, 5, ...")
    tensors = {"query": query, "key": key, "value": value, "offset": offset, "modulation": modulation}
    for name, tensor in tensors.items():
        if tensor.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected 4 dimensions (N, C, H, W)")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device} and value on {value.device}, expected one device")
        if tensor.dtype != value.dtype or not tensor.dtype.is_floating_point:
            raise ValueError(f"{name} is {tensor.dtype} and value {value.dtype}, expected one floating-point dtype")
    batch, _, height, width = value.shape
    taps = kernel_size**2
    channels = {"query": query.shape[1], "key": query.shape[1], "offset": 2 * taps, "modulation": taps}
    for name, expected in channels.items():
        shape = (batch, expected, height, width)
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensors[name].shape)}, expected {shape} beside value "
                f"{tuple(value.shape)} with kernel_size {kernel_size}"
            )
    if math.prod(value.shape) == 0 or query.shape[1] == 0:
        raise ValueError(f"value {tuple(value.shape)} and query {tuple(query.shape)} must not be empty")
    if backend not in ("auto", "reference", "cpu"):
        raise ValueError(f"backend is {backend!r}, expected 'auto', 'reference' or 'cpu'")
    if backend == "cpu" and (value.device.type != "cpu" or value.dtype != torch.float32):
        raise ValueError(
            f"backend 'cpu' takes float32 tensors on the CPU, got {value.dtype} on {value.device}; use 'reference'"
        )
