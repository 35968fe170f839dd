"""Intersection over union, from exact integer counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddsm_zoo.metrics.ids import check_num_classes, comparable_ids


class ConfusionMatrix:
    """Counts of (target class, predicted class) over all pixels whose target is not ``ignore_index``.

    ``matrix`` (num_classes, num_classes) int64 on the CPU: rows are targets, columns predictions. Counts are
    exact, so the order of updates and merges does not matter.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """(3, num_classes): the pixels of each class that are right, that are labelled so, that are predicted so."""
        return torch.stack([self.matrix.diagonal(), self.matrix.sum(1), self.matrix.sum(0)])

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count the pixels of integer class ids ``pred`` and ``target``, both (N, H, W) or any one common shape.

        Raises ValueError for different shapes, for tensors that are not integer and for ids outside 0 up to
        num_classes (where the target is ``ignore_index``, nothing is looked at); nothing is counted then.
        """
        pred, target, counted = comparable_ids(pred, target, self.num_classes, self.ignore_index)
        pairs = torch.bincount(target[counted] * self.num_classes + pred[counted], minlength=self.num_classes**2)
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
        predictions; ``miou`` is the mean of the others. ``accuracy`` lists the recall of each class, nan where it does
        not occur in targets, and ``mean_accuracy`` is the mean of the others; ``pixel_accuracy`` is the share of right
        pixels. Each is nan when there is nothing to count.
        """
        right, targets, _ = counts = self.counts.double()
        iou, accuracy = iou_of(counts), right / targets
        return {
            "miou": iou.nanmean().item(),
            "pixel_accuracy": (right.sum() / targets.sum()).item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "iou": iou.tolist(),
            "accuracy": accuracy.tolist(),
        }


def iou_of(counts: Tensor) -> Tensor:
    """IoU (..., K) from the pixels (..., 3, K) of each class that are right, labelled and predicted, nan for none."""
    right, target, predicted = counts.double().unbind(-2)
    return right / (target + predicted - right)  # 0 / 0 is nan: an absent class
