"""One logit per pixel against two, of which the background's is 0, and against torch's own sigmoid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ddsm_zoo.inference.modes import Predict, multi_scale, sliding_window
from ddsm_zoo.inference.scores import as_scores, predict_ids, probabilities
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises

pytestmark = pytest.mark.numeric


def logits(seed: int = 0) -> Tensor:
    scores = 4 * torch.randn(2, 1, 9, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores[0, 0, 0, 0] = 0.0  # a tie
    return scores


def beside_zero(scores: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(scores), scores], 1)


def test_one_logit_is_a_softmax_beside_zero() -> None:
    one = logits()
    torch.testing.assert_close(probabilities(one)[:, 0], beside_zero(one).softmax(1)[:, 1])
    assert probabilities(one).shape == one.shape
    assert torch.equal(predict_ids(one), beside_zero(one).argmax(1))


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.5, 0.97])
def test_threshold_is_a_probability(threshold: float) -> None:
    one = logits().float()
    by_numpy = 1 / (1 + np.exp(-one.double().numpy()[:, 0])) > threshold
    np.testing.assert_array_equal(predict_ids(one, threshold).numpy(), by_numpy.astype(int))


@pytest.mark.parametrize(
    ("classes", "threshold"), [(2, 0.5), (11, 0.2), (1, 0.0), (1, 1.0), (1, -2.0), (1, float("nan"))]
)
def test_threshold_of_several_classes_or_out_of_range_is_refused(classes: int, threshold: float) -> None:
    with raises(ConfigError, kind="config", name="threshold") as error:
        predict_ids(torch.zeros(1, classes, 2, 2), threshold)
    assert error.value.got is threshold


def test_certain_pixels_survive_as_scores() -> None:
    """Logits of the probabilities 0 and 1 are finite: a resize multiplies them by 0."""
    certain = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3)
    assert as_scores(certain).isfinite().all()
    assert predict_ids(as_scores(certain), 0.3).tolist() == [[[0, 0, 1]]]
    assert torch.equal(as_scores(certain.expand(1, 2, 1, 3)), certain.expand(1, 2, 1, 3))


@pytest.mark.parametrize("windows", [False, True])
def test_modes_average_one_logit_like_two(windows: bool) -> None:
    """Sliding windows average logits, scales and mirror images average probabilities."""
    network = torch.nn.Conv2d(3, 1, 5, padding=2).double()
    image = torch.randn(1, 3, 20, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def one(image: Tensor) -> Tensor:
        return 5 * network(image)

    def both(image: Tensor) -> Tensor:
        return beside_zero(one(image))

    def whole_protocol(predict: Predict) -> Tensor:
        if windows:
            predict = sliding_window(predict, (12, 16), (8, 8))
        return multi_scale(predict, (0.5, 1.0, 1.5), flip=True)(image)

    expected = whole_protocol(both)
    scores = whole_protocol(one)
    torch.testing.assert_close(probabilities(scores)[:, 0], expected[:, 1])
    assert torch.equal(predict_ids(scores), expected.argmax(1))
    assert torch.equal(predict_ids(scores, 0.2), (expected[:, 1] > 0.2).long())
