"""Choice of the threshold of a model of a single class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddsm_zoo.config import DEFAULT_THRESHOLD
from ddsm_zoo.data.datasets import SegmentationDataset
from ddsm_zoo.inference.scores import probabilities
from ddsm_zoo.layers import resize

THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


def best_threshold(model: nn.Module, samples: SegmentationDataset) -> tuple[float, dict[float, float]]:
    """Find the threshold of `THRESHOLDS` with the highest IoU of the class on ``samples``.

    Args:
        model: Maps images (1, 3, H, W) to logits (1, 1, H, W).
        samples: Images as the model takes them, and masks of 0 and 1.

    Returns:
        The threshold, the nearest to 0.5 of equally good ones, and the IoU at each threshold. They are nan, and the
            threshold is 0.5, if the class occurs nowhere.
    """
    iou = _iou(_histogram(model, samples))
    ious = dict(zip(THRESHOLDS, iou.tolist(), strict=True))
    if iou.isnan().all():
        return DEFAULT_THRESHOLD, ious
    best = [threshold for threshold in THRESHOLDS if ious[threshold] == max(iou[~iou.isnan()]).item()]
    return min(best, key=lambda threshold: abs(threshold - DEFAULT_THRESHOLD)), ious


@torch.inference_mode()
def _histogram(model: nn.Module, samples: SegmentationDataset) -> Tensor:
    """Count the pixels of background and class by the number of thresholds below their probability, (2, T + 1)."""
    model.eval()
    device = next(model.parameters()).device
    bins = len(THRESHOLDS) + 1
    counts = torch.zeros(2 * bins, dtype=torch.int64)
    for index in range(len(samples)):
        image, target = samples[index]
        logits = resize(model(image[None].to(device)), (target.shape[-2], target.shape[-1]))
        found = probabilities(logits.float())[0, 0].cpu()
        counted = target != samples.labels.ignore_index
        exceeded = torch.bucketize(found[counted], torch.tensor(THRESHOLDS))
        counts += torch.bincount(target[counted] * bins + exceeded, minlength=2 * bins)
    return counts.view(2, bins)


def _iou(histogram: Tensor) -> Tensor:
    """Compute the IoU of the class at each threshold (T,)."""
    predicted = histogram.flip(1).cumsum(1).flip(1)[:, 1:].double()
    return predicted[1] / (histogram[1].sum() + predicted[0])
