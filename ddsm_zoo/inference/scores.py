"""Class ids and probabilities from scores (N, K, H, W). With K = 1, a sigmoid and a threshold take argmax's place.

Every path from a model to class ids goes through here: training, evaluation, prediction and export.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddsm_zoo.config import DEFAULT_THRESHOLD, check_threshold


def probabilities(logits: Tensor) -> Tensor:
    """Convert logits (N, K, ...) to probabilities of the same shape: by softmax, by sigmoid for a single class."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def as_scores(probabilities: Tensor) -> Tensor:
    """Convert probabilities (N, K, ...) to scores for `predict_ids`: themselves, or logits for a single class."""
    if probabilities.shape[1] > 1:
        return probabilities
    # Infinite logits would become NaN in a resize
    return probabilities.logit(eps=torch.finfo(probabilities.dtype).eps)


def predict_ids(scores: Tensor, threshold: float | None = None) -> Tensor:
    """Convert scores to class ids.

    Args:
        scores: Scores (N, K, ...), of which the highest wins. A single class has logits.
        threshold: For a single class, the probability above which a pixel is the class (1) and not background (0). None
            stands for 0.5.

    Returns:
        Class ids (N, ...), int64.

    Raises:
        ConfigError: The threshold is not between 0 and 1, or there are several classes.

    Examples:
        >>> import torch
        >>> predict_ids(torch.tensor([[[[0.2]], [[1.5]]]])).tolist()  # two classes, one pixel
        [[[1]]]
    """
    if threshold is not None:
        check_threshold(threshold, scores.shape[1])
    if scores.shape[1] > 1:
        return scores.argmax(1)
    return (scores[:, 0] > cut(threshold)).long()


def cut(threshold: float | None) -> float:
    """Return the logit of a threshold."""
    share = DEFAULT_THRESHOLD if threshold is None else threshold
    return math.log(share / (1 - share))
