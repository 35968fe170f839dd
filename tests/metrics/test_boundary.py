"""Boundary metrics against versions that treat one class after the other with scikit-image and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.morphology import dilation, disk, erosion, footprint_rectangle

from benchmarks.speed.boundary import dilated, outline, straightforward
from ddsm_zoo.metrics import BoundaryFScore, BoundaryIoU
from tests.support.errors import raises

CLASSES, VOID = 3, 255
RADII = (0, 1, 2, 3)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=14)


@st.composite
def image_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and label, each of a few rectangles, so that outlines are long and lie near each other."""
    height, width = draw(SHAPES)
    masks = []
    for values in ([*range(CLASSES)], [*range(CLASSES), VOID]):
        mask = np.full((height, width), draw(st.sampled_from(values)))
        for _ in range(draw(st.integers(0, 4))):
            top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
            bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
            mask[top:bottom, left:right] = draw(st.sampled_from(values))
        masks.append(mask)
    return masks[0], masks[1]


def tensors(pair: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])


def f_scores(*pairs: tuple[np.ndarray, np.ndarray], radii: tuple[int, ...] = RADII) -> BoundaryFScore:
    metric = BoundaryFScore(CLASSES, radii)
    for pair in pairs:
        metric.update(*tensors(pair))
    return metric


def occurs(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which classes are in the prediction or in the label, where the label is not void."""
    known = pair[1] != VOID
    return np.array([((pair[0] == label) & known).any() or (pair[1] == label).any() for label in range(CLASSES)])


@given(st.lists(image_pairs(), min_size=1, max_size=3))
def test_both_variants_equal_class_by_class_dilation(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    scores = np.stack([straightforward(*pair, CLASSES, RADII) for pair in pairs])  # (N, R, K)
    present = np.stack([occurs(pair) for pair in pairs])[:, None]
    result = f_scores(*pairs).compute()
    for row, radius in enumerate(RADII):
        assert math.isclose(result[radius], scores[:, row].mean(), rel_tol=1e-12)
        strict = [
            scores[:, row, label][present[:, 0, label]].mean() for label in range(CLASSES) if present[:, 0, label].any()
        ]
        expected = float(np.mean(strict)) if strict else math.nan
        np.testing.assert_allclose(result["present_only"][radius], expected, rtol=1e-12)
    assert math.isclose(result["mean"], np.mean([result[radius] for radius in RADII]))
    assert set(result) == {*RADII, "mean", "present_only"}
    assert set(result["present_only"]) == {*RADII, "mean"}


@given(hnp.arrays(bool, SHAPES), st.integers(0, 4))
def test_the_oracle_dilates_by_disks(mask: np.ndarray, radius: int) -> None:
    """The oracle's fast dilation is the one with a disk as footprint, and the outline a loop over neighbors."""
    if mask.any():
        assert np.array_equal(dilated(mask, radius), dilation(mask.astype(np.uint8), disk(radius)).astype(bool))
    height, width = mask.shape
    for y, x in np.ndindex(height, width):
        neighbors = [(y + 1, x), (y, x + 1), (y + 1, x + 1)]
        inside = [mask[place] for place in neighbors if place[0] < height and place[1] < width]
        assert outline(mask)[y, x] == any(value != mask[y, x] for value in inside)


def test_large_radii_reach_as_far_as_they_say() -> None:
    pred, target = np.zeros((40, 40), int), np.zeros((40, 40), int)
    pred[:, 10:] = 1
    target[:, 22:] = 1  # outlines are 12 pixels apart
    result = f_scores((pred, target), radii=(3, 5, 9, 11, 12)).compute()
    assert [result[radius] for radius in (3, 5, 9, 11, 12)] == [1 / 3, 1 / 3, 1 / 3, 1 / 3, 1.0]  # class 2 is absent
    assert [result["present_only"][radius] for radius in (11, 12)] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("size", "radii"),
    [((1024, 2048), (3, 5, 9, 12)), ((360, 480), (1, 2, 3, 3)), ((720, 960), (2, 3, 5, 6)), ((1, 1), (1, 1, 1, 1))],
)
def test_the_published_radii_are_shares_of_the_diagonal(size: tuple[int, int], radii: tuple[int, ...]) -> None:
    """Oracle: the radius as SFSegNets and DecoupleSegNets compute it, and the radii that the paper gives."""
    metric = BoundaryFScore(CLASSES)
    assert metric.pixels(*size) == radii
    assert radii == tuple(int(np.ceil(share * np.linalg.norm(size))) for share in metric.measures)
    assert BoundaryFScore(CLASSES, (2, 7)).pixels(*size) == (2, 7)


def blocks(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and label of squares of 20 pixels, the prediction two pixels off."""
    generator = np.random.default_rng(seed)
    target = np.kron(generator.integers(0, CLASSES, (size[0] // 20, size[1] // 20)), np.ones((20, 20), int))
    return np.roll(target, (1, 2), (0, 1)), target


def test_each_image_has_radii_of_its_own_size() -> None:
    pairs = [blocks((300, 400), 0), blocks((60, 80), 1), blocks((720, 960), 2)]
    radii = [(1, 1, 2, 3), (1, 1, 1, 1), (2, 3, 5, 6)]
    scores = np.stack([straightforward(*pair, CLASSES, each) for pair, each in zip(pairs, radii, strict=True)])
    metric = BoundaryFScore(CLASSES)
    for pair in pairs:
        metric.update(*tensors(pair))
    result = metric.compute()
    shares = (0.00088, 0.001875, 0.00375, 0.005)
    np.testing.assert_allclose([result[share] for share in shares], scores.mean((0, 2)), rtol=1e-12)
    assert len(set(scores.mean((0, 2)).tolist())) == 4  # over the set, though not in each image
    assert result["mean"] == pytest.approx(scores.mean())
    assert set(result) == {*shares, "mean", "present_only"}


def test_two_shares_of_one_radius_are_two_measures() -> None:
    metric = BoundaryFScore(CLASSES)
    pred, target = blocks((360, 480), 0)
    metric.update(*tensors((np.roll(pred, 1, 1), target)))  # three pixels off
    result = metric.compute()
    assert result[0.00375] == result[0.005] > result[0.001875]
    assert result["mean"] == pytest.approx((result[0.00088] + result[0.001875] + 2 * result[0.005]) / 4)


def test_a_class_in_one_of_both_scores_zero_and_one_without_outlines_scores_one() -> None:
    everywhere = np.zeros((5, 5), int)
    spot = everywhere.copy()
    spot[2, 2] = 1
    assert f_scores((spot, everywhere)).compute()["present_only"][3] == 0.0  # neither class 0 nor 1 has its outline
    assert f_scores((everywhere, everywhere)).compute()["present_only"][0] == 1.0


def test_all_void_has_nothing_to_score() -> None:
    result = f_scores((np.zeros((4, 4), int), np.full((4, 4), VOID))).compute()
    assert math.isnan(result["present_only"]["mean"])
    assert result["mean"] == 1.0  # the published protocol counts absent classes


@given(image_pairs(), image_pairs())
def test_merging_and_batches_equal_one_after_the_other(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> None:
    for metric in (BoundaryFScore(CLASSES, RADII), BoundaryIoU(CLASSES)):
        other, batched = (type(metric)(CLASSES, *([RADII] if hasattr(metric, "radii") else [])) for _ in range(2))
        metric.update(*tensors(first))
        other.update(*tensors(second))
        batched.update(*(ids.repeat(2, 1, 1) for ids in tensors(first)))
        np.testing.assert_allclose(batched.counts, 2 * metric.counts)
        expected = metric.counts + other.counts
        metric.merge(other)
        assert torch.equal(metric.counts, expected)
        metric.reset()
        assert not metric.counts.any()


def boundary_region(mask: np.ndarray, distance: int) -> np.ndarray:
    """What erosion by a square takes away from a mask that ends at the image's border."""
    eroded = np.pad(mask, 1)
    for _ in range(distance):
        eroded = erosion(eroded.astype(np.uint8), footprint_rectangle((3, 3))).astype(bool)
    return mask & ~eroded[1:-1, 1:-1]


@settings(max_examples=50)
@given(st.lists(image_pairs(), min_size=1, max_size=2), st.sampled_from([0.02, 0.1, 0.3]))
def test_boundary_iou_equals_repeated_erosion(pairs: list[tuple[np.ndarray, np.ndarray]], ratio: float) -> None:
    metric, sums = BoundaryIoU(CLASSES, ratio), np.zeros((CLASSES, 2))
    for pred, target in pairs:
        metric.update(*tensors((pred, target)))
        distance = max(1, round(ratio * math.hypot(*target.shape)))
        for label in range(CLASSES):
            ours = boundary_region((pred == label) & (target != VOID), distance)
            theirs = boundary_region(target == label, distance)
            sums[label] += (ours & theirs).sum(), (ours | theirs).sum()
    expected = [inter / union if union else math.nan for inter, union in sums]
    result = metric.compute()
    np.testing.assert_allclose(result["iou"], expected, rtol=1e-12)
    np.testing.assert_allclose(result["boundary_iou"], np.nanmean(expected) if any(sums[:, 1]) else math.nan)


@pytest.mark.parametrize("metric", [BoundaryFScore(CLASSES), BoundaryIoU(CLASSES)], ids=["F", "IoU"])
def test_bad_input_counts_nothing(metric: BoundaryFScore | BoundaryIoU) -> None:
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    for pred, target, fault in [
        (zeros + 3, zeros, {"name": "pred", "got": 3}),
        (zeros, zeros - 1, {"name": "target", "got": -1}),
        (zeros.float(), zeros, {"name": "pred", "got": torch.float32}),
        (zeros[0], zeros[0], {"kind": "array"}),
        (zeros, zeros[:1], {"kind": "array"}),
    ]:
        with raises(ValueError, **fault):
            metric.update(pred, target)
    assert not metric.counts.any()


def test_metrics_that_cannot_be() -> None:
    for radii in ((), (-1,), (2.5,), (0.00088,), (3, 3)):
        with raises(ValueError, name="radii", got=radii):
            BoundaryFScore(CLASSES, radii)  # type: ignore[arg-type]  # 2.5 is what a user may give
    for ratio in (0.0, 1.0, -0.1):
        with raises(ValueError, name="ratio", got=ratio):
            BoundaryIoU(CLASSES, ratio)
    with raises(ValueError, got=(CLASSES, (3, 5, 9, 12), 255), expected=(CLASSES, None, 255)):
        BoundaryFScore(CLASSES).merge(BoundaryFScore(CLASSES, (3, 5, 9, 12)))
    with raises(ValueError, got=(CLASSES, 0.005, 255), expected=(CLASSES, 0.02, 255)):
        BoundaryIoU(CLASSES).merge(BoundaryIoU(CLASSES, 0.005))
    with raises(ValueError, name="num_classes", got=0):
        BoundaryIoU(0)


def test_more_classes_than_a_number_has_bits() -> None:
    generator = np.random.default_rng(3)
    target = np.kron(generator.integers(0, 70, (8, 8)), np.ones((3, 3), int))
    pred = np.roll(target, 1, axis=1)
    metric = BoundaryFScore(70, RADII)
    metric.update(*tensors((pred, target)))
    expected = straightforward(pred, target, 70, RADII).mean(1)
    np.testing.assert_allclose([metric.compute()[radius] for radius in RADII], expected, rtol=1e-12)
    assert expected[0] < 0.9


def test_boundaries_of_a_single_class_are_those_of_id_1_of_two() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(2, 3, 4, 5, generator=generator).repeat_interleave(4, -1) > 0.6).long()
    target[0, 0] = VOID
    pairs = ((BoundaryFScore(1, RADII), BoundaryFScore(2, RADII)), (BoundaryIoU(1), BoundaryIoU(2)))
    for one, two in pairs:
        one.update(pred, target)
        two.update(pred, target)
        assert torch.equal(one.counts, two.counts)
    images, present, *sums = pairs[0][1].counts[:, 1].tolist()
    assert pairs[0][0].compute()["present_only"]["mean"] == pytest.approx(sum(sums) / len(sums) / present)
    assert images == 3
    assert pairs[1][0].compute()["boundary_iou"] == pairs[1][1].compute()["iou"][1]
