"""Checks of class ids, shared by all metrics.

A single class has two ids, 0 for the background and 1 for the class. Means are then over the class alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddsm_zoo.errors import ArgumentError


def check_num_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ArgumentError.of("num_classes", num_classes, "at least 1")


def id_count(num_classes: int) -> int:
    """Return the number of ids in masks."""
    return max(2, num_classes)


def without_background(values: Tensor, num_classes: int | None) -> Tensor:
    """Leave the background of a single class out of values (..., ids), before a mean over classes."""
    return values[..., 1:] if num_classes == 1 else values


def comparable_ids(pred: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return both as int64 on the device of ``pred``, and a mask of the pixels whose target is not ignored.

    Raises ValueError for different shapes, tensors that are not integer, and ids outside 0 to `id_count` - 1 among the
    pixels that count.
    """
    if pred.shape != target.shape:
        raise ArgumentError(
            f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}, expected the same for both",
            kind="array",
            name="pred",
            got=tuple(pred.shape),
            expected=tuple(target.shape),
        )
    for name, ids in (("pred", pred), ("target", target)):
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ArgumentError.of(name, ids.dtype, "integer class ids", "take the argmax of logits first")
    # int64 first: an ignore_index of -100 would wrap around when compared as uint8
    pred, target = pred.detach().long(), target.detach().long().to(pred.device)
    counted = target != ignore_index
    for name, ids in (("pred", pred), ("target", target)):
        strange = ids[((ids < 0) | (ids >= id_count(num_classes))) & counted]
        if strange.numel():
            raise ArgumentError(
                f"{name} holds class id {int(strange[0])}, expected 0 to {id_count(num_classes) - 1}"
                + (f" or the ignored {ignore_index}" if name == "target" else ""),
                kind="unknown-id",
                name=name,
                got=int(strange[0]),
            )
    return pred, target, counted
