from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddsm_zoo.engine.evaluate import evaluate_model

CLASSES = 3


def one_hot(image: Tensor) -> Tensor:
    """Reads the class id out of the image's first channel: a perfect model for `labelled`."""
    ids = image[:, 0].long().clamp(0, CLASSES - 1)
    return torch.nn.functional.one_hot(ids, CLASSES).permute(0, 3, 1, 2).float()


def labelled(mask: np.ndarray) -> tuple[Tensor, Tensor]:
    ids = torch.from_numpy(mask.astype(np.int64))
    return ids.float().expand(3, *ids.shape).clone(), ids


def random_masks(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.choice([0, 1, 2, 255], size=size) for size in sizes]


def test_perfect_prediction_scores_one() -> None:
    dataset = [labelled(mask) for mask in random_masks([(4, 6), (4, 6), (5, 3)])]
    result = evaluate_model(one_hot, dataset, CLASSES, 255)
    assert result == {
        "miou": 1.0,
        "pixel_accuracy": 1.0,
        "mean_accuracy": 1.0,
        "iou": [1.0, 1.0, 1.0],
        "count": 3,
        "resolutions": [[4, 6], [5, 3]],
        "dtype": "float32",
    }


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_batches_change_nothing_and_the_last_partial_one_counts_once(batch_size: int) -> None:
    sizes = [(4, 4), (4, 4), (4, 4), (2, 7), (4, 4), (4, 4), (3, 3)]
    dataset = [labelled(mask) for mask in random_masks(sizes)]
    noise = torch.randn(1, CLASSES, 1, 1, generator=torch.Generator().manual_seed(0))
    batches, progress, exported = [], [], []

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
        export=lambda index, prediction: exported.append((index, tuple(prediction.shape))),
    )
    assert sum(batches) == len(sizes) == result["count"]
    assert max(batches) <= batch_size
    assert progress == [(index + 1, len(sizes)) for index in range(len(sizes))]
    assert exported == list(enumerate(sizes))
    alone = evaluate_model(lambda image: one_hot(image) + noise, dataset, CLASSES, 255)
    assert result == alone


def test_scores_are_resized_to_the_label_before_the_argmax() -> None:
    """Oracle: PIL's bilinear upsampling of float images, which shares align_corners=False."""
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(CLASSES, 6, 5)).astype(np.float32)
    enlarged = np.stack(
        [np.asarray(Image.fromarray(plane).resize((15, 18), Image.Resampling.BILINEAR)) for plane in scores]
    )
    dataset = [(torch.zeros(3, 6, 5), torch.from_numpy(enlarged.argmax(0)))]
    result = evaluate_model(lambda _: torch.from_numpy(scores)[None], dataset, CLASSES, 255)
    assert result["miou"] == 1.0
    assert result["resolutions"] == [[18, 15]]


def test_class_that_never_occurs_is_nan() -> None:
    result = evaluate_model(one_hot, [labelled(np.array([[0, 1, 255]]))], CLASSES, 255)
    assert result["miou"] == 1.0
    assert math.isnan(result["iou"][2])


def test_no_gradients_even_from_a_bare_model() -> None:
    model, results = torch.nn.Conv2d(3, CLASSES, 1), []
    evaluate_model(
        lambda image: results.append(model(image)) or results[-1], [labelled(np.zeros((2, 2)))], CLASSES, 255
    )
    assert not results[0].requires_grad


def test_empty_set() -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate_model(one_hot, [], CLASSES, 255)


def test_nan_names_the_image() -> None:
    dataset = [labelled(mask) for mask in random_masks([(2, 2), (3, 3)])]
    with pytest.raises(ValueError, match="NaN on image 1"):
        evaluate_model(lambda x: one_hot(x) * (math.nan if x.shape[-1] == 3 else 1.0), dataset, CLASSES, 255)


def test_other_number_of_classes() -> None:
    with pytest.raises(ValueError, match="predicts 3 classes, but the data set has 5"):
        evaluate_model(one_hot, [labelled(np.zeros((2, 2)))], 5, 255)


def test_label_outside_the_classes() -> None:
    with pytest.raises(ValueError, match="target holds class id 7"):
        evaluate_model(one_hot, [labelled(np.array([[7, 0]]))], CLASSES, 255)
