"""The threshold of the highest IoU against trying each one by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ddsm_zoo.config import Preprocess
from ddsm_zoo.data.datasets import SegmentationDataset, open_dataset
from ddsm_zoo.data.transforms import EvalTransform
from ddsm_zoo.training.threshold import THRESHOLDS, best_threshold
from tests.support.binary_set import write_binary_set

PLAIN = EvalTransform(Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    return open_dataset(f"folder:{write_binary_set(tmp_path_factory.mktemp('data'), train=1)}", "val", PLAIN)


def brightness(factor: float, bias: float) -> nn.Conv2d:
    network = nn.Conv2d(3, 1, 1)
    nn.init.constant_(network.weight, factor)
    nn.init.constant_(network.bias, bias)  # type: ignore[arg-type]
    return network


@pytest.mark.parametrize(("factor", "bias"), [(2.0, -3.5), (2.0, -1.0), (0.3, -1.0)])
def test_each_threshold_scores_what_numpy_counts(samples: SegmentationDataset, factor: float, bias: float) -> None:
    network = brightness(factor, bias)
    threshold, ious = best_threshold(network, samples)
    images, masks = zip(*(samples[index] for index in range(len(samples))), strict=True)
    with torch.inference_mode():
        found = 1 / (1 + np.exp(-network(torch.stack(images))[:, 0].double().numpy()))
    true = torch.stack(masks).numpy()
    found, true = found[true != 255], true[true != 255] == 1
    for each in THRESHOLDS:
        union = np.count_nonzero((found > each) | true)
        assert ious[each] == pytest.approx(np.count_nonzero((found > each) & true) / union, abs=1e-3)
    assert ious[threshold] == max(ious.values())


def test_equal_thresholds_give_the_middle(samples: SegmentationDataset) -> None:
    threshold, ious = best_threshold(brightness(0.0, -50.0), samples)
    assert (threshold, set(ious.values())) == (0.5, {0.0})
