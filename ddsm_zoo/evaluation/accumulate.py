"""Scores on a labeled set, computed from per-image counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.inference.modes import Predict
from ddsm_zoo.inference.scores import predict_ids
from ddsm_zoo.layers import resize
from ddsm_zoo.metrics import BoundaryFScore, BoundaryIoU, ConfusionMatrix
from ddsm_zoo.metrics.boundary import check_radii, f_scores_of
from ddsm_zoo.metrics.confusion import iou_of
from ddsm_zoo.metrics.ids import id_count, without_background
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.distributed import all_reduce_sum, shard
from ddsm_zoo.utils.memory import enough_memory


class LabeledImages(Protocol):
    """Map-style data set of (image (3, H, W) normalized float, mask (h, w) integer ids)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Prediction:
    """Class ids (h, w) of image ``index`` and its mask. ``dtype`` is that of the scores, None if there are none."""

    index: int
    ids: Tensor
    target: Tensor
    dtype: str | None


class PerImageCounts:
    """Per-image counts of a set, and the scores of the whole set, of one image or of a bootstrap draw.

    Counts of different images and processes are kept apart and summed in a fixed order. The scores are therefore the
    same to the bit, however the images are distributed over processes. ``counts`` holds counts per image by metric:
    ``pixels`` (n, 3, K), and with ``boundary`` also ``boundary_f`` (n, 2 + R, K) for the R radii of `BoundaryFScore`,
    and ``boundary_iou`` (n, 3, K). A single class has K = 2, the background and the class.
    """

    def __init__(
        self,
        images: int,
        num_classes: int,
        ignore_index: int,
        *,
        boundary: bool = False,
        boundary_radii: Sequence[int] | None = None,
    ) -> None:
        if not images:
            raise ArgumentError(
                "the data set is empty, expected at least one image to evaluate on", kind="missing-split", got=0
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.boundary_radii = None if boundary_radii is None else check_radii(boundary_radii)
        self.confusion = ConfusionMatrix(num_classes, ignore_index)
        self.sizes = torch.zeros(images, 2, dtype=torch.int64)
        self.dtype: str | None = None
        self.counts = {"pixels": torch.zeros(images, 3, id_count(num_classes), dtype=torch.int64)}
        if boundary:
            for name, metric in self._boundary_metrics().items():
                self.counts[name] = metric.counts.new_zeros(images, *metric.counts.shape)

    def add(self, prediction: Prediction) -> None:
        """Count one image. Each image may be counted only once."""
        index, ids, target, self.dtype = prediction.index, prediction.ids, prediction.target, prediction.dtype
        confusion = ConfusionMatrix(self.num_classes, self.ignore_index)
        confusion.update(ids, target)
        self.confusion.merge(confusion)
        self.counts["pixels"][index] = confusion.counts
        self.sizes[index] = torch.tensor(target.shape)
        if "boundary_f" in self.counts:
            for name, metric in self._boundary_metrics().items():
                metric.update(ids, target)
                self.counts[name][index] = metric.counts

    def gather(self) -> None:
        """Share the counts of all processes with every process."""
        self.confusion.matrix = all_reduce_sum(self.confusion.matrix)
        self.sizes = all_reduce_sum(self.sizes)
        self.counts = {name: all_reduce_sum(counts) for name, counts in self.counts.items()}

    def image_scores(self) -> Tensor:
        """Return the mIoU of each image (n,) over the classes that occur in it.

        It is nan for an image without labeled pixels.
        """
        return without_background(iou_of(self.counts["pixels"]), self.num_classes).nanmean(-1)

    def figures(self) -> dict[str, Any]:
        """Return the scores of the set as fractions of 1, and the `facts`.

        ``miou``, ``pixel_accuracy``, ``mean_accuracy``, ``iou`` and ``accuracy`` are those of
        `ConfusionMatrix.compute`. With boundaries, there are also ``boundary_f`` of `BoundaryFScore.compute`,
        ``boundary_iou``, and ``boundary_f_pixels``: under the same keys, the radii in pixels that result from the image
        sizes. The lists ``boundary_f_by_class`` (mean over the radii at which the class is present) and
        ``boundary_iou_by_class`` have one number per class.
        """
        figures = self.confusion.compute()
        if "boundary_f" in self.counts:
            metrics = self._boundary_metrics()
            for name, metric in metrics.items():
                metric.counts = self.counts[name].sum(0)
            iou = metrics["boundary_iou"].compute()
            figures |= {
                "boundary_f": metrics["boundary_f"].compute(),
                "boundary_f_pixels": self._boundary_pixels(metrics["boundary_f"]),
                "boundary_f_by_class": f_scores_of(metrics["boundary_f"].counts, True).mean(-2).tolist(),
                "boundary_iou": iou["boundary_iou"],
                "boundary_iou_by_class": iou["iou"],
            }
        return {**figures, **self.facts()}

    def facts(self) -> dict[str, Any]:
        """Return the ``count`` of images, ``resolutions`` of their masks as [h, w] and ``dtype`` of the scores."""
        resolutions = torch.unique(self.sizes, dim=0).tolist()
        return {"count": len(self.sizes), "resolutions": resolutions, "dtype": self.dtype}

    def _boundary_pixels(self, metric: BoundaryFScore) -> dict[int | float, list[int]]:
        """Return the distinct radii of each measure over the images in ascending order.

        Images of one size give one radius.
        """
        sizes: list[tuple[int, int]] = torch.unique(self.sizes, dim=0).tolist()
        radii = zip(*(metric.pixels(height, width) for height, width in sizes), strict=True)
        return {key: sorted(set(each)) for key, each in zip(metric.measures, radii, strict=True)}

    def _boundary_metrics(self) -> dict[str, Any]:
        return {
            "boundary_f": BoundaryFScore(self.num_classes, self.boundary_radii, self.ignore_index),
            "boundary_iou": BoundaryIoU(self.num_classes, ignore_index=self.ignore_index),
        }


def summed_scores(sums: Mapping[str, Tensor], num_classes: int | None = None) -> dict[str, Tensor]:
    """Compute scores from sums of `PerImageCounts.counts`, with any leading dimensions.

    The means have shape (...), ``iou`` (..., K). With ``num_classes`` 1 the means leave out the background.
    """

    def mean(values: Tensor) -> Tensor:
        return without_background(values, num_classes).nanmean(-1)

    iou = iou_of(sums["pixels"])
    scores = {"miou": mean(iou)}
    if "boundary_f" in sums:
        scores["boundary_f"] = mean(f_scores_of(sums["boundary_f"], False).mean(-2))
        scores["boundary_f_present_only"] = mean(f_scores_of(sums["boundary_f"], True).mean(-2))
        scores["boundary_iou"] = mean(iou_of(sums["boundary_iou"]))
    return {**scores, "iou": iou}


def evaluate_model(  # noqa: PLR0913 - each is a choice of its own, as in the command
    predict: Predict,
    dataset: LabeledImages,
    num_classes: int,
    ignore_index: int,
    *,
    boundary: bool = False,
    boundary_radii: Sequence[int] | None = None,
    batch_size: int = 1,
    threshold: float | None = None,
    progress: Progress | None = None,
    observe: Callable[[Prediction], None] | None = None,
) -> PerImageCounts:
    """Compare the predictions with every mask of ``dataset`` at the mask's own resolution.

    Scores are resized bilinearly to the mask's size before the argmax or the ``threshold`` (see `predict_ids`).
    Consecutive images of equal size are predicted together, up to ``batch_size``. In distributed runs the processes
    share the images, and every process gets all counts.

    `progress` and `observe` are as for `count_predictions`. Raises ValueError for an empty set, another number of
    classes and NaN scores.
    """
    per_image = PerImageCounts(
        len(dataset), num_classes, ignore_index, boundary=boundary, boundary_radii=boundary_radii
    )
    predictions = predict_set(predict, dataset, num_classes, shard(len(dataset)), batch_size, threshold)
    return count_predictions(per_image, predictions, progress, observe)


def count_predictions(
    per_image: PerImageCounts,
    predictions: Iterable[Prediction],
    progress: Progress | None = None,
    observe: Callable[[Prediction], None] | None = None,
) -> PerImageCounts:
    """Count this process's predictions, then gather the counts of all processes.

    ``progress(done, total)`` is called as images of this process are finished, ``observe`` with each prediction, in
    order.
    """
    total = len(shard(len(per_image.sizes)))
    for done, prediction in enumerate(predictions, start=1):
        per_image.add(prediction)
        if observe:
            observe(prediction)
        if progress:
            progress(done, total)
    per_image.gather()
    return per_image


@torch.inference_mode()
def predict_set(
    predict: Predict,
    dataset: LabeledImages,
    num_classes: int,
    indices: Sequence[int],
    batch_size: int = 1,
    threshold: float | None = None,
) -> Iterator[Prediction]:
    """Predict the class ids of the images of these indices at the resolution of their masks.

    Raises the errors of `evaluate_model`.
    """
    for start in range(0, len(indices), batch_size):
        samples = [(index, *dataset[index]) for index in indices[start : start + batch_size]]
        for group in _of_one_size(samples):
            height, width = group[0][1].shape[-2:]
            work = f"segment {len(group)} images of {width} x {height} pixels at once"
            with enough_memory(work, "choose a smaller batch size or smaller images"):
                scores = predict(torch.stack([image for _, image, _ in group]))
            _check_scores(scores, num_classes, [index for index, _, _ in group])
            dtype = str(scores.dtype).removeprefix("torch.")
            for score, (index, _, mask) in zip(scores, group, strict=True):
                ids = predict_ids(resize(score[None], (mask.shape[-2], mask.shape[-1])), threshold)[0]
                yield Prediction(index, ids, mask, dtype)


def _of_one_size(samples: Sequence[tuple[int, Tensor, Tensor]]) -> list[list[tuple[int, Tensor, Tensor]]]:
    """Split the samples into runs of equal image size, in order."""
    groups: list[list[tuple[int, Tensor, Tensor]]] = []
    for sample in samples:
        if groups and groups[-1][-1][1].shape == sample[1].shape:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def _check_scores(scores: Tensor, num_classes: int, indices: Sequence[int]) -> None:
    if id_count(scores.shape[1]) != id_count(num_classes):
        raise ArgumentError(
            f"the model predicts {scores.shape[1]} classes, but the data set has {num_classes}",
            kind="classes-differ",
            got=scores.shape[1],
            expected=num_classes,
        )
    broken = scores.isnan().flatten(1).any(1).tolist()
    if any(broken):
        image = f"image {indices[broken.index(True)]}"
        raise ArgumentError(
            f"the model gives NaN on {image} of the set, expected finite scores; its weights are probably damaged",
            kind="nan-scores",
            name=image,
        )
