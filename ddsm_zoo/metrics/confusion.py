"""Intersection over union, computed from exact integer counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.metrics.ids import check_num_classes, comparable_ids, id_count, without_background


class ConfusionMatrix:
    """Counts of (target class, predicted class) over all pixels whose target is not ``ignore_index``.

    ``matrix`` (num_classes, num_classes) is int64 on the CPU: rows are targets, columns predictions. Counts are exact,
    so the order of updates and merges does not matter.

    With a single class, ids are 0 for the background and 1 for the class, ``matrix`` is (2, 2), and the means are those
    of the class alone.

    Args:
        num_classes: Number of classes, at least 1.
        ignore_index: Class id of target pixels that do not count.

    Raises:
        ValueError: ``num_classes`` is below 1.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(id_count(num_classes), id_count(num_classes), dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """Pixels of each class (3, num_classes): correct ones, labeled ones, predicted ones."""
        return torch.stack([self.matrix.diagonal(), self.matrix.sum(1), self.matrix.sum(0)])

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count pixels. Nothing is counted if an error is raised.

        Args:
            pred: Predicted class ids, integers (N, H, W) or any other shape. Not checked where the target is
                ``ignore_index``.
            target: Labeled class ids, in the same shape.

        Raises:
            ValueError: The shapes differ, a tensor is not integer, or an id that counts is no class.
        """
        pred, target, counted = comparable_ids(pred, target, self.num_classes, self.ignore_index)
        ids = id_count(self.num_classes)
        pairs = torch.bincount(target[counted] * ids + pred[counted], minlength=ids**2)
        self.matrix += pairs.view(ids, ids).cpu()

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of ``other``, for example of another process. Raises ValueError if its classes differ."""
        ours, theirs = (self.num_classes, self.ignore_index), (other.num_classes, other.ignore_index)
        if ours != theirs:
            text = f"cannot merge counts of (classes, ignored) {theirs} into {ours}"
            raise ArgumentError(text, got=theirs, expected=ours)
        self.matrix += other.matrix

    def reset(self) -> None:
        self.matrix.zero_()

    def compute(self) -> dict[str, Any]:
        """Compute the scores as fractions from 0 to 1, in float64. Each is nan if there is nothing to count.

        Returns:
            ``iou`` by class id, nan for a class in neither targets nor predictions, and ``miou``, the mean of the
            others. ``accuracy`` by class id, the recall, nan for a class not in the targets, and ``mean_accuracy``,
            the mean of the others. ``pixel_accuracy``, the share of correct pixels. For a single class, also its
            ``precision``, ``recall`` and ``dice`` (the F1 score).
        """
        right, targets, predicted = counts = self.counts.double()
        iou, accuracy = iou_of(counts), right / targets
        scores: dict[str, Any] = {
            "miou": without_background(iou, self.num_classes).nanmean().item(),
            "pixel_accuracy": (right.sum() / targets.sum()).item(),
            "mean_accuracy": without_background(accuracy, self.num_classes).nanmean().item(),
            "iou": iou.tolist(),
            "accuracy": accuracy.tolist(),
        }
        if self.num_classes == 1:
            scores["precision"] = (right[1] / predicted[1]).item()
            scores["recall"] = scores["mean_accuracy"]
            scores["dice"] = (2 * right[1] / (targets[1] + predicted[1])).item()
        return scores


def iou_of(counts: Tensor) -> Tensor:
    """Compute IoU (..., K) from the correct, labeled and predicted pixels of each class (..., 3, K), nan for none."""
    right, target, predicted = counts.double().unbind(-2)
    return right / (target + predicted - right)  # 0 / 0 is nan: an absent class
