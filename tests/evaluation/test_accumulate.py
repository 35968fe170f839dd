from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddsm_zoo.evaluation.accumulate import PerImageCounts, Prediction, evaluate_model, summed_scores
from ddsm_zoo.metrics import BoundaryFScore, BoundaryIoU, ConfusionMatrix
from ddsm_zoo.metrics.bootstrap import Resampling, interval, resample
from tests.support.errors import raises

CLASSES = 3


def one_hot(image: Tensor) -> Tensor:
    """Reads the class id out of the image's first channel: a perfect model for `labeled`."""
    ids = image[:, 0].long().clamp(0, CLASSES - 1)
    return torch.nn.functional.one_hot(ids, CLASSES).permute(0, 3, 1, 2).float()


def labeled(mask: np.ndarray) -> tuple[Tensor, Tensor]:
    ids = torch.from_numpy(mask.astype(np.int64))
    return ids.float().expand(3, *ids.shape).clone(), ids


def random_masks(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.choice([0, 1, 2, 255], size=size) for size in sizes]


def test_perfect_prediction_scores_one() -> None:
    dataset = [labeled(mask) for mask in random_masks([(4, 6), (4, 6), (5, 3)])]
    result = evaluate_model(one_hot, dataset, CLASSES, 255).figures()
    assert result == {
        "miou": 1.0,
        "pixel_accuracy": 1.0,
        "mean_accuracy": 1.0,
        "iou": [1.0, 1.0, 1.0],
        "accuracy": [1.0, 1.0, 1.0],
        "count": 3,
        "resolutions": [[4, 6], [5, 3]],
        "dtype": "float32",
    }


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_batches_change_nothing_and_the_last_partial_one_counts_once(batch_size: int) -> None:
    sizes = [(4, 4), (4, 4), (4, 4), (2, 7), (4, 4), (4, 4), (3, 3)]
    dataset = [labeled(mask) for mask in random_masks(sizes)]
    noise = torch.randn(1, CLASSES, 1, 1, generator=torch.Generator().manual_seed(0))
    batches, progress, observed = [], [], []

    def predict(image: Tensor) -> Tensor:
        batches.append(len(image))
        return one_hot(image) + noise

    result = evaluate_model(
        predict,
        dataset,
        CLASSES,
        255,
        batch_size=batch_size,
        progress=lambda done, total: progress.append((done, total)),
        observe=lambda prediction: observed.append((prediction.index, tuple(prediction.ids.shape))),
    ).figures()
    assert sum(batches) == len(sizes) == result["count"]
    assert max(batches) <= batch_size
    assert progress == [(index + 1, len(sizes)) for index in range(len(sizes))]
    assert observed == list(enumerate(sizes))
    alone = evaluate_model(lambda image: one_hot(image) + noise, dataset, CLASSES, 255).figures()
    assert result == alone


def test_scores_are_resized_to_the_label_before_the_argmax() -> None:
    """Oracle: PIL's bilinear upsampling of float images, which shares align_corners=False."""
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(CLASSES, 6, 5)).astype(np.float32)
    enlarged = np.stack(
        [np.asarray(Image.fromarray(plane).resize((15, 18), Image.Resampling.BILINEAR)) for plane in scores]
    )
    dataset = [(torch.zeros(3, 6, 5), torch.from_numpy(enlarged.argmax(0)))]
    result = evaluate_model(lambda _: torch.from_numpy(scores)[None], dataset, CLASSES, 255).figures()
    assert result["miou"] == 1.0
    assert result["resolutions"] == [[18, 15]]


def test_class_that_never_occurs_is_nan() -> None:
    result = evaluate_model(one_hot, [labeled(np.array([[0, 1, 255]]))], CLASSES, 255).figures()
    assert result["miou"] == 1.0
    assert math.isnan(result["iou"][2])


def test_no_gradients_even_from_a_bare_model() -> None:
    model, results = torch.nn.Conv2d(3, CLASSES, 1), []
    evaluate_model(lambda image: results.append(model(image)) or results[-1], [labeled(np.zeros((2, 2)))], CLASSES, 255)
    assert not results[0].requires_grad


def test_empty_set() -> None:
    with raises(ValueError, kind="missing-split", got=0):
        evaluate_model(one_hot, [], CLASSES, 255)


def test_nan_names_the_image() -> None:
    dataset = [labeled(mask) for mask in random_masks([(2, 2), (3, 3)])]
    with raises(ValueError, kind="nan-scores", name="image 1"):
        evaluate_model(lambda x: one_hot(x) * (math.nan if x.shape[-1] == 3 else 1.0), dataset, CLASSES, 255)


def test_other_number_of_classes() -> None:
    with raises(ValueError, kind="classes-differ", got=3, expected=5):
        evaluate_model(one_hot, [labeled(np.zeros((2, 2)))], 5, 255)


def test_too_little_memory_names_the_size() -> None:
    with raises(ValueError, kind="out-of-memory") as error:
        evaluate_model(lambda x: x.new_empty(2**50), [labeled(np.zeros((2, 3)))], CLASSES, 255)
    assert "3 x 2" in str(error.value)


def test_label_outside_the_classes() -> None:
    with raises(ValueError, kind="unknown-id", name="target", got=7):
        evaluate_model(one_hot, [labeled(np.array([[7, 0]]))], CLASSES, 255)


def random_predictions(sizes: list[tuple[int, int]]) -> list[Prediction]:
    generator = np.random.default_rng(2)
    return [
        Prediction(index, torch.from_numpy(generator.integers(0, CLASSES, size)), torch.from_numpy(mask), "float32")
        for index, (size, mask) in enumerate(zip(sizes, random_masks(sizes), strict=True))
    ]


SIZES = [(9, 12), (9, 12), (20, 7), (5, 5)]


def tallied(predictions: list[Prediction], boundary: bool = True) -> PerImageCounts:
    per_image = PerImageCounts(len(predictions), CLASSES, 255, boundary=boundary)
    for prediction in predictions:
        per_image.add(prediction)
    return per_image


def test_all_figures_are_those_of_the_metrics() -> None:
    predictions = random_predictions(SIZES)
    confusion, f_score, iou = ConfusionMatrix(CLASSES), BoundaryFScore(CLASSES), BoundaryIoU(CLASSES)
    for prediction in predictions:
        for metric in (confusion, f_score, iou):
            metric.update(prediction.ids, prediction.target)
    figures = tallied(predictions).figures()
    assert {**figures, **confusion.compute()} == figures
    assert figures["boundary_f"] == f_score.compute()
    assert figures["boundary_iou"] == iou.compute()["boundary_iou"]
    assert figures["boundary_iou_by_class"] == iou.compute()["iou"]
    assert np.mean(figures["boundary_f_by_class"]) == pytest.approx(f_score.compute()["present_only"]["mean"])
    assert "boundary_f" not in tallied(predictions, boundary=False).figures()


def test_a_draw_scores_what_its_images_score() -> None:
    """Oracle: the set that a draw stands for, counted image by image anew."""
    predictions = random_predictions(SIZES)
    counts = tallied(predictions).counts
    generator = torch.Generator().manual_seed(5)
    draws = {name: resample(values, 3, seed=5) for name, values in counts.items()}
    scores = summed_scores(draws)
    for row in range(3):
        chosen = [predictions[i] for i in torch.randint(len(SIZES), (len(SIZES),), generator=generator).tolist()]
        again = [Prediction(index, each.ids, each.target, None) for index, each in enumerate(chosen)]
        figures = tallied(again).figures()
        assert scores["miou"][row].item() == pytest.approx(figures["miou"])
        assert scores["boundary_f"][row].item() == pytest.approx(figures["boundary_f"]["mean"])
        strict = figures["boundary_f"]["present_only"]["mean"]
        assert scores["boundary_f_present_only"][row].item() == pytest.approx(strict)
        assert scores["boundary_iou"][row].item() == pytest.approx(figures["boundary_iou"])


@pytest.mark.parametrize("radii", [None, (1, 4)])
def test_radii_in_pixels_are_reported_beside_the_scores(radii: tuple[int, ...] | None) -> None:
    predictions = random_predictions([(300, 400), (60, 80), (300, 400)])
    per_image = PerImageCounts(3, CLASSES, 255, boundary=True, boundary_radii=radii)
    for prediction in predictions:
        per_image.add(prediction)
    metric = BoundaryFScore(CLASSES, radii)
    for prediction in predictions:
        metric.update(prediction.ids, prediction.target)
    figures = per_image.figures()
    assert figures["boundary_f"] == metric.compute()
    shares = {0.00088: [1], 0.001875: [1], 0.00375: [1, 2], 0.005: [1, 3]}
    assert figures["boundary_f_pixels"] == (shares if radii is None else {1: [1], 4: [4]})


@pytest.mark.parametrize(("by", "units"), [("sequence", 3), ("block:2", 4)])
def test_draws_of_sequences_and_blocks_are_the_scores_of_all_their_images(by: str, units: int) -> None:
    """Brute force: the images of the drawn units, counted once for every time that their unit was drawn."""
    predictions = random_predictions([*SIZES, (6, 6), (7, 8)])
    names = ["a_1", "b_1", "a_2", "b_3", "a_3", "c_1"]
    members = {
        "sequence": [[0, 2, 4], [1, 3], [5]],
        "block:2": [[0, 2], [1, 3], [4], [5]],
    }[by]
    resampling = Resampling.plan(by, names, [name[0] for name in names])
    assert resampling.count == units
    counts = tallied(predictions).counts
    scores = summed_scores({name: resample(values, 4, 5, resampling.units) for name, values in counts.items()})
    generator = torch.Generator().manual_seed(5)
    sizes = set()
    for row in range(4):
        drawn = torch.randint(units, (units,), generator=generator).tolist()
        chosen = [predictions[index] for unit in drawn for index in members[unit]]
        sizes.add(len(chosen))
        figures = tallied(
            [Prediction(index, each.ids, each.target, None) for index, each in enumerate(chosen)]
        ).figures()
        assert scores["miou"][row].item() == pytest.approx(figures["miou"])
        np.testing.assert_allclose(scores["iou"][row], figures["iou"], rtol=1e-12)
        assert scores["boundary_f"][row].item() == pytest.approx(figures["boundary_f"]["mean"])
        assert scores["boundary_iou"][row].item() == pytest.approx(figures["boundary_iou"])
    assert len(sizes) > 1  # units of different lengths make draws of different lengths


def test_frames_that_are_all_the_same_tell_no_more_than_one() -> None:
    """Ten copies of each image narrow an interval by image threefold, and one by sequence not at all."""
    images = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    frames = images.repeat_interleave(10, 0)
    names = [f"s{clip:02}_{frame}" for clip in range(40) for frame in range(10)]
    widths = {}
    for by in ("image", "sequence", "block:10"):
        units = Resampling.plan(by, names, [name[:3] for name in names]).units
        ((low, high),) = interval(resample(frames, 2000, units=units) / 400)
        widths[by] = high - low
    ((low, high),) = interval(resample(images, 2000) / 40)
    assert widths["sequence"] == widths["block:10"] == pytest.approx(high - low)
    assert widths["image"] == pytest.approx(widths["sequence"] / math.sqrt(10), rel=0.1)


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    values = torch.randn(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ((low, high),) = interval(resample(values, 4000) / 400)
    half = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - half, abs=0.01)
    assert high == pytest.approx(values.mean().item() + half, abs=0.01)


def test_an_interval_leaves_out_draws_without_the_class() -> None:
    values = torch.tensor([[1.0, math.nan], [1.0, 3.0], [1.0, math.nan]])
    assert interval(values) == [[1.0, 1.0], [3.0, 3.0]]
    assert all(map(math.isnan, interval(values[:1])[1]))


def test_image_scores_are_those_of_each_image_alone() -> None:
    predictions = random_predictions(SIZES)
    for score, prediction in zip(tallied(predictions).image_scores(), predictions, strict=True):
        confusion = ConfusionMatrix(CLASSES)
        confusion.update(prediction.ids, prediction.target)
        assert score.item() == confusion.compute()["miou"]
