"""Result of an evaluation: scores, intervals, gains and pictures from the counts of each image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ddsm_zoo.data.datasets import SegmentationDataset
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.evaluation.accumulate import (
    PerImageCounts,
    Prediction,
    summed_scores,
)
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.metrics.bootstrap import LEVEL, Resampling, interval, resample
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.visualize import draw_confusion, error_sheet

_BY_CLASS = ("iou", "accuracy", "boundary_f_by_class", "boundary_iou_by_class")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Per-image counts on a data set, and a record of how they were made.

    Attributes:
        dataset: Data set that was scored.
        per_image: Counts of each image.
        resampling: Units that the bootstrap draws.
        again: Repeats the prediction of the image with this index.
        record: Model, data, protocol and versions that the scores depend on.
        extra: Scores that only this data set defines.
    """

    dataset: SegmentationDataset
    per_image: PerImageCounts
    resampling: Resampling
    again: Callable[[int], Prediction]
    record: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> LabelSpace:
        """Classes of the ids in masks, for a single class with the background."""
        return self.dataset.labels.in_masks

    @property
    def headline(self) -> str:
        """Name of the score ``miou``: the mean over the classes of the data, so for a single class its IoU."""
        return "mIoU" if len(self.dataset.labels) > 1 else f"IoU of {self.dataset.labels.names[0]}"

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.per_image.sizes)

    @property
    def labeled(self) -> bool:
        """Return True if any pixel has a class. The labels of a benchmark's test split are void or missing."""
        return bool(self.per_image.confusion.matrix.any())

    def figures(self, bootstrap: int = 0) -> dict[str, Any]:
        """Return all scores as fractions of 1, and the record of everything that they depend on.

        Scores of single classes are keyed by class name. A class that never occurs scores nan. The means leave it out,
        and ``never_occurs`` names it. Without labels, there is only the record.

        Args:
            bootstrap: Number of draws for ``intervals``, 0 for none. These are 95 % confidence intervals [low, high]
                over images, sequences or blocks (``by``, ``units``). Their ``note`` says how far to trust them for
                video frames.

        Returns:
            Plain data, as docs/evaluation.md defines it.
        """
        if not self.labeled:
            return {**self.per_image.facts(), **self.record}
        scores = self.per_image.figures()
        named = {key: self._by_class(scores[key]) for key in _BY_CLASS if key in scores}
        never = [name for name, iou in named["iou"].items() if math.isnan(iou)]
        figures = {**scores, **named, "never_occurs": never}
        if taken := self.extra.keys() & (figures.keys() | self.record.keys()):
            raise ArgumentError(
                f"extra scores of the data set have the names {sorted(taken)} of other metrics; rename them",
                got=sorted(taken),
            )
        figures |= self.extra
        if bootstrap:
            figures["intervals"] = self._intervals(bootstrap, self._draws(bootstrap, self.resampling))
        return {**figures, "confusion": self.per_image.confusion.matrix.tolist(), **self.record}

    def gain_over(self, other: Evaluation, bootstrap: int) -> dict[str, Any]:
        """Return the gain of this evaluation over ``other`` on the same images, with paired confidence intervals.

        Args:
            other: Evaluation to compare with.
            bootstrap: Number of draws for the intervals.

        Raises:
            ValueError: The evaluations have different images or different boundary measures.
        """
        if [pair.mask for pair in self.dataset.pairs] != [pair.mask for pair in other.dataset.pairs]:
            raise ArgumentError(
                "the two evaluations have different images, expected the same data set and split", name="dataset"
            )
        measures = [(set(each.per_image.counts), each.per_image.boundary_radii) for each in (self, other)]
        if measures[0] != measures[1]:
            raise ArgumentError(
                "the two evaluations have different boundary measures, expected one Request for both",
                name="boundary",
                got=measures[1],
                expected=measures[0],
            )
        mine, theirs = (
            each._summed({name: counts.sum(0) for name, counts in each.per_image.counts.items()})
            for each in (self, other)
        )
        gain = {name: (mine[name] - theirs[name]).tolist() for name in mine}
        # One seed draws the same images for both
        draws, others = (each._draws(bootstrap, self.resampling) for each in (self, other))
        intervals = self._intervals(bootstrap, {name: draws[name] - others[name] for name in draws})
        return {**gain, "iou": self._by_class(gain["iou"]), "intervals": intervals}

    def worst(self, count: int) -> list[dict[str, Any]]:
        """Return the images of lowest mIoU, the worst first, with ``name``, ``index`` and ``miou``.

        Images without labeled pixels are left out.

        Args:
            count: Maximum number of images.
        """
        scores = self.per_image.image_scores()
        order = [index for index in scores.argsort(stable=True).tolist() if not scores[index].isnan()]
        names = self.dataset.pairs
        return [{"name": names[i].name, "index": i, "miou": scores[i].item()} for i in order[:count]]

    def write_pictures(self, folder: Path, worst: int = 0) -> None:
        """Write ``confusion.png``, and ``worst_RANK_NAME.png`` with image, label, prediction and errors.

        Args:
            folder: Target folder.
            worst: Number of images of lowest mIoU to draw.
        """
        _save(draw_confusion(self.per_image.confusion.matrix.numpy(), self.labels), folder / "confusion.png")
        for rank, entry in enumerate(self.worst(worst), start=1):
            prediction = self.again(entry["index"])
            image = to_pil_image(self.dataset.load(entry["index"])[0])
            sheet = error_sheet(image, prediction.ids.cpu().numpy(), prediction.target.numpy(), self.labels)
            name = entry["name"].replace("/", "_")  # of an image in a subfolder
            _save(sheet, folder / f"worst_{rank:02d}_{name}.png")

    def _draws(self, bootstrap: int, resampling: Resampling) -> dict[str, Tensor]:
        counts = self.per_image.counts.items()
        return self._summed({name: resample(each, bootstrap, units=resampling.units) for name, each in counts})

    def _summed(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return summed_scores(sums, self.per_image.num_classes)

    def _intervals(self, bootstrap: int, draws: dict[str, Tensor]) -> dict[str, Any]:
        drawn = {"by": self.resampling.by, "units": self.resampling.count, "note": self.resampling.note}
        means = {name: interval(values[:, None])[0] for name, values in draws.items() if name != "iou"}
        scores = {**means, "iou": self._by_class(interval(draws["iou"]))}
        return {"draws": bootstrap, "level": LEVEL, **drawn, **scores}

    def _by_class(self, values: list[Any]) -> dict[str, Any]:
        return dict(zip(self.labels.names, values, strict=True))


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary)
