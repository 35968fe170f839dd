"""The score of any predictor on a labelled set, from one confusion matrix of integer counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ddsm_zoo.engine.inference import Predict, resize
from ddsm_zoo.metrics import ConfusionMatrix

Progress = Callable[[int, int], None]
Export = Callable[[int, Tensor], None]


class LabelledImages(Protocol):
    """Anything like a map-style dataset of (image (3, H, W) normalised float, mask (h, w) integer ids)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


@torch.inference_mode()
def evaluate_model(
    predict: Predict,
    dataset: LabelledImages,
    num_classes: int,
    ignore_index: int,
    *,
    batch_size: int = 1,
    progress: Progress | None = None,
    export: Export | None = None,
) -> dict[str, Any]:
    """Compare ``predict`` with every mask of ``dataset`` at the mask's own resolution.

    Scores are resized bilinearly to the mask's size before the argmax. Images of one size that follow each
    other are predicted together, up to ``batch_size``. ``progress(done, total)`` is called as images are
    done, ``export(index, prediction)`` with the int64 class ids (h, w) of each image, in order.

    Returns ``miou``, ``pixel_accuracy``, ``mean_accuracy`` (fractions of 1), ``iou`` (a list by class id,
    nan for a class that never occurs), ``count`` of images, ``resolutions`` of the masks as [h, w] and ``dtype``
    of the scores. Raises ValueError for an empty set, another number of classes and NaN scores.
    """
    total = len(dataset)
    if not total:
        raise ValueError("the data set is empty, expected at least one image to evaluate on")
    confusion = ConfusionMatrix(num_classes, ignore_index)
    resolutions: set[tuple[int, int]] = set()
    done, dtype = 0, torch.float32
    for start in range(0, total, batch_size):
        pairs = [dataset[index] for index in range(start, min(start + batch_size, total))]
        for group in _of_one_size(pairs):
            scores = predict(torch.stack([image for image, _ in group]))
            _check_scores(scores, num_classes, done)
            dtype = scores.dtype
            for score, (_, mask) in zip(scores, group, strict=True):
                prediction = resize(score[None], (mask.shape[-2], mask.shape[-1])).argmax(1)
                confusion.update(prediction, mask[None])
                resolutions.add((mask.shape[-2], mask.shape[-1]))
                if export:
                    export(done, prediction[0])
                done += 1
                if progress:
                    progress(done, total)
    return {
        **confusion.compute(),
        "count": done,
        "resolutions": [list(size) for size in sorted(resolutions)],
        "dtype": str(dtype).removeprefix("torch."),
    }


def _of_one_size(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """Split into runs of images of the same size, keeping the order."""
    groups: list[list[tuple[Tensor, Tensor]]] = []
    for pair in pairs:
        if groups and groups[-1][-1][0].shape == pair[0].shape:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def _check_scores(scores: Tensor, num_classes: int, first: int) -> None:
    if scores.shape[1] != num_classes:
        raise ValueError(f"the model predicts {scores.shape[1]} classes, but the data set has {num_classes}")
    if scores.isnan().any():
        raise ValueError(
            f"the model gives NaN on image {first} of the set, expected finite scores; its weights are probably damaged"
        )
