"""Instance-level IoU as Cityscapes defines it: every object has the same weight, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddsm_zoo.errors import ArgumentError


class InstanceIoU:
    """Instance-level IoU (iIoU) of groups of classes whose objects are labeled individually.

    A group is a single class or a category. An object's pixels count as hit if they are predicted as any class of the
    group. Hits and misses of an object are weighted by the mean size of its class's objects divided by its own size.
    False positives are the pixels of a `ConfusionMatrix` that are predicted as the group and labeled otherwise.

    ``counts`` (2, groups) is float64 on the CPU: the weighted hits, and the weighted pixels of all objects.

    Args:
        groups: Class ids of each group, by name.
        mean_sizes: Mean size in pixels of the objects of each class, by class id.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]], mean_sizes: Mapping[int, float]) -> None:
        self.groups = {name: tuple(classes) for name, classes in groups.items()}
        self.mean_sizes = dict(mean_sizes)
        self.counts = torch.zeros(2, len(self.groups), dtype=torch.float64)

    def update(self, pred: Tensor, target: Tensor, instances: Tensor) -> None:
        """Count one image.

        Args:
            pred: Predicted class ids (H, W).
            target: Labeled class ids (H, W).
            instances: Object ids (H, W), 0 for no object.
        """
        pred, target, instances = (ids.detach().long().cpu().flatten() for ids in (pred, target, instances))
        objects = instances > 0
        names, index, sizes = torch.unique(instances[objects], return_inverse=True, return_counts=True)
        # All pixels of an object have the same class
        classes = torch.zeros_like(names).scatter_(0, index, target[objects])
        for column, members in enumerate(self.groups.values()):
            hit = torch.isin(pred[objects], torch.tensor(members))
            hits = torch.bincount(index[hit], minlength=len(names))
            for member in members:
                own = classes == member
                self.counts[0, column] += (hits[own] * (self.mean_sizes[member] / sizes[own].double())).sum()
                self.counts[1, column] += self.mean_sizes[member] * int(own.sum())

    def merge(self, other: InstanceIoU) -> None:
        """Add the counts of ``other``. Raises ValueError if its groups or mean sizes differ."""
        if (other.groups, other.mean_sizes) != (self.groups, self.mean_sizes):
            theirs, ours = list(other.groups), list(self.groups)
            raise ArgumentError(f"cannot merge objects of {theirs} into {ours}", got=theirs, expected=ours)
        self.counts += other.counts

    def reset(self) -> None:
        self.counts.zero_()

    def compute(self, matrix: Tensor) -> dict[str, Any]:
        """Compute iIoU as fractions from 0 to 1.

        Args:
            matrix: Confusion matrix (K, K) of the same images.

        Returns:
            iIoU by group, nan for a group without pixels.
        """
        hits, pixels = self.counts
        return {
            name: (hits[column] / (pixels[column] + _false_positives(matrix, members))).item()
            for column, (name, members) in enumerate(self.groups.items())
        }


def category_iou(matrix: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Compute the IoU of each group, its classes merged, from a confusion ``matrix`` (K, K). Absent groups are nan."""
    scores = {}
    for name, members in groups.items():
        rows = matrix[list(members)].double()
        right = rows[:, list(members)].sum()
        scores[name] = (right / (rows.sum() + _false_positives(matrix, members))).item()
    return scores


def _false_positives(matrix: Tensor, members: Sequence[int]) -> Tensor:
    others = [index for index in range(len(matrix)) if index not in members]
    return matrix[others][:, list(members)].double().sum()
