"""Selection of the images of an epoch, as a function of (seed, epoch) alone, and class statistics of the masks.

``counts`` (images, K) are the pixels of each class in each image of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddsm_zoo.training.dataloader import mix_seeds, shuffled


def epoch_order(
    count: int, seed: int, epoch: int, images: int = 0, weights: Sequence[float] | Tensor | None = None
) -> list[int]:
    """Return the indices below ``count`` that an epoch shows, in order: ``count`` of them, or ``images`` if fewer.

    Without ``weights``, no image repeats before all others were shown, across epochs too. With weights, an image is
    shown its expected number of times, rounded down or up, so that chance adds no further variation.

    Args:
        count: Number of images of the training set.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        images: Maximum number of images, 0 for all.
        weights: Weight (count,) of each image, 0 or more.

    Examples:
        >>> sorted(epoch_order(6, seed=0, epoch=0, images=3) + epoch_order(6, seed=0, epoch=1, images=3))
        [0, 1, 2, 3, 4, 5]
    """
    images = min(images or count, count)
    if weights is None:
        first = epoch * images
        cycles = range(first // count, (first + images - 1) // count + 1)
        stream = [index for cycle in cycles for index in shuffled(count, seed, cycle)]
        return stream[first % count :][:images]
    generator = torch.Generator().manual_seed(mix_seeds(seed, epoch))
    ends = torch.as_tensor(weights, dtype=torch.float64).cumsum(0)
    ends = ends / ends[-1] * images
    # Systematic sampling: ``images`` equidistant points over the cumulative weights, with a random start
    start = torch.rand((), generator=generator, dtype=torch.float64)
    teeth = torch.diff((ends - start).ceil().long().clamp(min=0), prepend=torch.zeros(1, dtype=torch.long))
    drawn = torch.arange(count).repeat_interleave(teeth)
    order: list[int] = drawn[torch.randperm(images, generator=generator)].tolist()
    return order


def rarity(counts: Tensor) -> Tensor:
    """Return the weight (images,) by which balanced sampling draws each image: the sum of 1 / sqrt(n) over its classes.

    n is the number of images that show the class. A class in a hundred times fewer images is therefore shown ten times
    less often, not a hundred times. Without the root, one image with a class of its own would fill the epochs.
    """
    present = (counts > 0).double()
    return (present / present.sum(0).clamp(min=1).sqrt()).sum(1)


def median_frequency(counts: Tensor) -> Tensor:
    """Class weights (K,) by median frequency balancing (Eigen and Fergus, ICCV 2015). A class that never occurs gets 1.

    The frequency of a class is its share of the labeled pixels in the images that show it. Its weight is the median of
    all frequencies divided by its own.
    """
    pixels = counts.double()
    shown_on = ((pixels > 0) * pixels.sum(1, keepdim=True)).sum(0)
    occurs = shown_on > 0
    frequency = pixels.sum(0) / shown_on.clamp(min=1)
    weights = torch.ones_like(frequency)
    if occurs.any():
        weights[occurs] = frequency[occurs].quantile(0.5) / frequency[occurs]
    return weights
