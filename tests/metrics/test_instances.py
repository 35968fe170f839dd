"""Objects weigh the same whatever their size: against a loop over objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.metrics import ConfusionMatrix, InstanceIoU
from ddsm_zoo.metrics.instances import category_iou
from tests.support.errors import raises

GROUPS = {"first": (1,), "both": (1, 2)}
MEAN_SIZES = {1: 6.0, 2: 2.5}


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, label and objects: of classes 1 and 2 some pixels belong to objects, each of one class."""
    generator = np.random.default_rng(seed)
    target = generator.integers(0, 3, (6, 7))
    objects = np.where(
        (target > 0) & (generator.random((6, 7)) < 0.8), 10 * target + generator.integers(0, 3, (6, 7)), 0
    )
    return generator.integers(0, 3, (6, 7)), target, objects


def by_loop(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]], members: tuple[int, ...]) -> float:
    hits = misses = 0.0
    for pred, _, objects in images:
        for name in np.unique(objects[objects > 0]):
            label = name // 10
            if label in members:
                right = np.isin(pred[objects == name], members)
                weight = MEAN_SIZES[label] / right.size
                hits, misses = hits + weight * right.sum(), misses + weight * (~right).sum()
    wrong = sum((np.isin(pred, members) & ~np.isin(target, members)).sum() for pred, target, _ in images)
    total = hits + misses + wrong
    return float(hits / total) if total else math.nan


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_scores_equal_a_loop_and_merging_equals_counting_everything(seeds: list[int]) -> None:
    images = [drawn(seed) for seed in seeds]
    confusion, metric, merged = ConfusionMatrix(3), InstanceIoU(GROUPS, MEAN_SIZES), InstanceIoU(GROUPS, MEAN_SIZES)
    for image in images:
        pred, target, objects = map(torch.from_numpy, image)
        confusion.update(pred, target)
        metric.update(pred, target, objects)
        single = InstanceIoU(GROUPS, MEAN_SIZES)
        single.update(pred, target, objects)
        merged.merge(single)
    torch.testing.assert_close(metric.counts, merged.counts)
    result = metric.compute(confusion.matrix)
    for name, members in GROUPS.items():
        assert result[name] == pytest.approx(by_loop(images, members), nan_ok=True)
    merged.reset()
    assert not merged.counts.any()


def test_categories_are_one_class_each() -> None:
    pred, target, _ = map(torch.from_numpy, drawn(1))
    confusion, joined = ConfusionMatrix(3), ConfusionMatrix(2)
    confusion.update(pred, target)
    joined.update(pred.clamp(max=1), target.clamp(max=1))
    scores = category_iou(confusion.matrix, {"zero": (0,), "others": (1, 2)})
    assert list(scores.values()) == joined.compute()["iou"]
    assert math.isnan(category_iou(torch.zeros(3, 3, dtype=torch.int64), {"none": (1, 2)})["none"])


def test_merge_refuses_other_groups() -> None:
    with raises(ValueError, got=["first"]):
        InstanceIoU(GROUPS, MEAN_SIZES).merge(InstanceIoU({"first": (1,)}, MEAN_SIZES))
