"""Scores of a segmentation, from exact integer counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ConfusionMatrix:
    """Counts of (target class, predicted class) over all pixels whose target is not ``ignore_index``.

    ``matrix`` (num_classes, num_classes) int64 on the CPU: rows are targets, columns predictions. Counts are
    exact, so the order of updates and merges does not matter.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count the pixels of integer class ids ``pred`` and ``target``, both (N, H, W) or any one common shape.

        Raises ValueError for different shapes, for tensors that are not integer and for ids outside 0 up to
        num_classes (where the target is ``ignore_index``, nothing is looked at); nothing is counted then.
        """
        if pred.shape != target.shape:
            raise ValueError(
                f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}, expected the same for both"
            )
        for name, ids in (("pred", pred), ("target", target)):
            if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                raise ValueError(f"{name} is {ids.dtype}, expected integer class ids; take the argmax of logits first")
        # int64 first: an ignore_index of -100 would wrap round when compared as uint8
        pred, target = pred.detach().long(), target.detach().long().to(pred.device)
        counted = target != self.ignore_index
        pred, target = pred[counted], target[counted]
        self._check_ids("pred", pred)
        self._check_ids("target", target)
        pairs = torch.bincount(target * self.num_classes + pred, minlength=self.num_classes**2)
        self.matrix += pairs.view(self.num_classes, self.num_classes).cpu()

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of ``other``, for example of another process. Raises ValueError for other classes."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError(
                f"cannot merge counts of {other.num_classes} classes (ignoring {other.ignore_index}) into "
                f"{self.num_classes} classes (ignoring {self.ignore_index})"
            )
        self.matrix += other.matrix

    def reset(self) -> None:
        self.matrix.zero_()

    def compute(self) -> dict[str, Any]:
        """The scores as fractions from 0 to 1, in float64.

        ``iou`` is a list with one value per class, nan where the class occurs neither in targets nor in
        predictions; ``miou`` is the mean of the others. ``mean_accuracy`` is the mean recall of the classes that
        occur in targets, ``pixel_accuracy`` the share of right pixels. Each is nan when there is nothing to
        count.
        """
        matrix = self.matrix.double()
        right = matrix.diagonal()
        targets, predictions = matrix.sum(1), matrix.sum(0)
        iou = right / (targets + predictions - right)  # 0 / 0 is nan: an absent class
        return {
            "miou": iou.nanmean().item(),
            "pixel_accuracy": (right.sum() / matrix.sum()).item(),
            "mean_accuracy": (right / targets).nanmean().item(),
            "iou": iou.tolist(),
        }

    def _check_ids(self, name: str, ids: Tensor) -> None:
        if not ids.numel():
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{name} holds class id {low if low < 0 else high}, expected 0 to {self.num_classes - 1}"
                + (f" or the ignored {self.ignore_index}" if name == "target" else "")
            )
