"""Faster 1 x 1 convolutions on one CPU thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def fast_pointwise(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Let oneDNN compute the 1 x 1 convolutions of ``model`` also if torch has one CPU thread.

    With one thread, torch takes slower code of its own for kernels of one pixel, unless they are dilated. Dilation does
    not change what such a kernel computes. So they are dilated during the block, and derivatives of what was computed
    in it are faster too. Otherwise nothing changes: with more threads, or images on another device.
    """
    own_code = images.device.type == "cpu" and torch.get_num_threads() == 1
    layers = [part for part in model.modules() if own_code and isinstance(part, nn.Conv2d) and _is_plain(part)]
    for layer in layers:
        layer.dilation = (2, 2)
    try:
        yield
    finally:
        for layer in layers:
            layer.dilation = (1, 1)


def _is_plain(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == layer.dilation == (1, 1)
