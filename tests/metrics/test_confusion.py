from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ddsm_zoo.metrics import ConfusionMatrix
from tests.support.errors import raises

CLASSES = 4
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)
PAIRS = SHAPES.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1)),
        hnp.arrays(np.uint8, shape, elements=st.sampled_from([*range(CLASSES), 255])),
    )
)


def brute_force(pred: np.ndarray, target: np.ndarray) -> dict[str, object]:
    """The scores from their definitions: sets of pixels per class, no matrix."""
    valid = target != 255
    ious, recalls = [], []
    for k in range(CLASSES):
        predicted, actual = (pred == k) & valid, (target == k) & valid
        union = np.count_nonzero(predicted | actual)
        ious.append(np.count_nonzero(predicted & actual) / union if union else math.nan)
        recalls.append(np.count_nonzero(predicted & actual) / actual.sum() if actual.any() else math.nan)
    seen, labeled = ([score for score in scores if not math.isnan(score)] for scores in (ious, recalls))
    return {
        "miou": sum(seen) / len(seen) if seen else math.nan,
        "pixel_accuracy": np.count_nonzero((pred == target) & valid) / valid.sum() if valid.any() else math.nan,
        "mean_accuracy": sum(labeled) / len(labeled) if labeled else math.nan,
        "iou": ious,
        "accuracy": recalls,
    }


def counted(pred: np.ndarray, target: np.ndarray) -> ConfusionMatrix:
    confusion = ConfusionMatrix(CLASSES)
    confusion.update(torch.from_numpy(pred), torch.from_numpy(target))
    return confusion


@given(PAIRS)
def test_scores_equal_their_definitions(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected, got = brute_force(*pair), counted(*pair).compute()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)


@given(PAIRS)
def test_matrix_rows_are_targets(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    for p, t in zip(pair[0].ravel(), pair[1].ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    matrix = counted(*pair).matrix
    assert matrix.dtype == torch.int64
    assert np.array_equal(matrix.numpy(), expected)


@given(PAIRS, PAIRS)
def test_merging_equals_counting_everything(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> None:
    together, merged = counted(*first), counted(*first)
    together.update(*map(torch.from_numpy, second))
    merged.merge(counted(*second))
    assert torch.equal(together.matrix, merged.matrix)
    merged.reset()
    assert not merged.matrix.any()


def test_counts_stay_exact_beyond_float32() -> None:
    confusion = ConfusionMatrix(2)
    confusion.matrix[0, 0] = 2**53
    confusion.update(torch.zeros(1, 1, 1, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert int(confusion.matrix[0, 0]) == 2**53 + 1


def test_absent_class_is_nan_and_left_out_of_the_mean() -> None:
    scores = counted(np.array([[[0, 1]]], np.uint8), np.array([[[0, 1]]], np.uint8)).compute()
    assert scores["miou"] == 1.0
    assert [math.isnan(iou) for iou in scores["iou"]] == [False, False, True, True]


def test_class_that_is_only_predicted_counts_as_zero() -> None:
    scores = counted(np.array([[[0, 1]]], np.uint8), np.array([[[0, 0]]], np.uint8)).compute()
    assert scores["iou"][:2] == [0.5, 0.0]
    assert scores["mean_accuracy"] == 0.5


def test_negative_ignore_index_does_not_wrap_round() -> None:
    confusion = ConfusionMatrix(200, ignore_index=-100)
    ids = torch.tensor([[[156, 3]]], dtype=torch.uint8)
    confusion.update(ids, ids)
    assert int(confusion.matrix.sum()) == 2


@pytest.mark.parametrize(
    ("pred", "target", "fault"),
    [
        (torch.tensor([4]), torch.tensor([0]), ("pred", 4)),
        (torch.tensor([-1]), torch.tensor([0]), ("pred", -1)),
        (torch.tensor([0]), torch.tensor([7]), ("target", 7)),
        (torch.tensor([0.0]), torch.tensor([0]), ("pred", torch.float32)),
        (torch.tensor([0]), torch.tensor([True]), ("target", torch.bool)),
        (torch.tensor([0, 1]), torch.tensor([0]), ("pred", (2,))),
    ],
)
def test_bad_input_counts_nothing(pred: torch.Tensor, target: torch.Tensor, fault: tuple[str, object]) -> None:
    confusion = ConfusionMatrix(CLASSES)
    with raises(ValueError, name=fault[0], got=fault[1]):
        confusion.update(pred, target)
    assert not confusion.matrix.any()


def test_ids_where_the_target_is_ignored_do_not_matter() -> None:
    confusion = ConfusionMatrix(CLASSES)
    confusion.update(torch.tensor([99, 1]), torch.tensor([255, 1]))
    assert int(confusion.matrix.sum()) == 1


def test_merge_refuses_other_classes() -> None:
    with raises(ValueError, got=(3, 255), expected=(CLASSES, 255)):
        ConfusionMatrix(CLASSES).merge(ConfusionMatrix(3))


def test_no_classes() -> None:
    with raises(ValueError, name="num_classes", got=0):
        ConfusionMatrix(0)


@given(
    SHAPES.flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)),
            hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 255])),
        )
    )
)
def test_means_of_a_single_class_leave_out_the_background(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, target = pair
    confusion = ConfusionMatrix(1)
    confusion.update(torch.from_numpy(pred), torch.from_numpy(target))
    predicted, actual = pred[target != 255] == 1, target[target != 255] == 1

    def ratio(part: np.ndarray, whole: np.ndarray) -> float:
        return np.count_nonzero(part) / np.count_nonzero(whole) if whole.any() else math.nan

    iou = ratio(predicted & actual, predicted | actual)
    precision, recall = ratio(predicted & actual, predicted), ratio(predicted & actual, actual)
    both = np.count_nonzero(predicted) + np.count_nonzero(actual)
    expected = {
        "miou": iou,
        "iou": [ratio(~predicted & ~actual, ~predicted | ~actual), iou],
        "precision": precision,
        "recall": recall,
        "mean_accuracy": recall,
        "dice": 2 * np.count_nonzero(predicted & actual) / both if both else math.nan,
        "pixel_accuracy": (predicted == actual).mean() if actual.size else math.nan,
    }
    got = confusion.compute()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)


def test_a_single_class_has_no_third_id() -> None:
    with raises(ValueError, kind="unknown-id", name="pred", got=2):
        ConfusionMatrix(1).update(torch.tensor([2]), torch.tensor([1]))
