"""A model, or a folder of predictions, and the name of a data set to scores, with all that they depend on."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ddsm_zoo.config import Preprocess, to_dict
from ddsm_zoo.data.datasets import SegmentationDataset, open_dataset
from ddsm_zoo.data.kinds import find_kind, known_specs, open_layout
from ddsm_zoo.data.masks import DatasetError, MaskDecoder, identity
from ddsm_zoo.data.predictions import find_predictions, read_prediction
from ddsm_zoo.data.transforms import EvalTransform
from ddsm_zoo.evaluation.accumulate import (
    PerImageCounts,
    Prediction,
    count_predictions,
    evaluate_model,
    predict_set,
    summed_scores,
)
from ddsm_zoo.evaluation.scored_model import wrap_model
from ddsm_zoo.inference.modes import Predict
from ddsm_zoo.inference.protocol import InferenceProtocol
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.metrics import BoundaryIoU
from ddsm_zoo.metrics.bootstrap import LEVEL, Resampling, check_unit, interval, resample
from ddsm_zoo.metrics.boundary import DIAGONAL_SHARES, check_radii
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.distributed import shard
from ddsm_zoo.utils.files import atomic_path
from ddsm_zoo.utils.visualize import draw_confusion, error_sheet
from ddsm_zoo.version import __version__

_BY_CLASS = ("iou", "accuracy", "boundary_f_by_class", "boundary_iou_by_class")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to score on: a split of ``camvid:ROOT``, ``folder:ROOT``, ..., and how.

    ``protocol`` is a name of `inference.protocol.PROTOCOLS` or the path of a TOML file. ``boundary`` adds the boundary
    F-score and Boundary IoU. The F-score's radii are the published shares of each image's diagonal, or
    ``boundary_radii`` in pixels for every image. ``bootstrap_by`` is what the bootstrap draws: ``image``, ``sequence``
    or ``block:N``, as in `metrics.bootstrap.Resampling.plan`. The device is a GPU where there is one unless given, and
    ``preprocess``, how images become the model's input, is what the model was trained with or, where it does not say,
    ImageNet's. Raises ValueError for radii that cannot be, or without ``boundary``, and for another ``bootstrap_by``.
    """

    data: str
    split: str = "val"
    protocol: str | os.PathLike[str] = "whole"
    boundary: bool = False
    boundary_radii: Sequence[int] | None = None
    bootstrap_by: str = "image"
    batch_size: int = 1
    device: str | torch.device | None = None
    preprocess: Preprocess | None = None

    def __post_init__(self) -> None:
        check_unit(self.bootstrap_by)
        if self.boundary_radii is None:
            return
        check_radii(self.boundary_radii)
        if not self.boundary:
            raise ValueError("boundary radii belong to the boundary F-score, expected boundary=True (--boundary) too")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was counted on a data set, image by image, and how it came about.

    ``again(index)`` is the `Prediction` of one image once more. ``resampling`` has the units that the bootstrap draws.
    ``extra`` are scores that only this data set defines.
    """

    dataset: SegmentationDataset
    per_image: PerImageCounts
    resampling: Resampling
    again: Callable[[int], Prediction]
    record: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> LabelSpace:
        return self.dataset.labels

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.per_image.sizes)

    @property
    def labeled(self) -> bool:
        """Whether any pixel has a class; the labels of a benchmark's test split are void, or not there at all."""
        return bool(self.per_image.confusion.matrix.any())

    def figures(self, bootstrap: int = 0) -> dict[str, Any]:
        """All scores as fractions of 1, by class name where they are a class's, and the record of what they depend on.

        nan stands for a class that never occurs; the means leave it out, and ``never_occurs`` names it. ``bootstrap``
        is the number of draws for ``intervals``, the 95 % confidence intervals [low, high] over images, sequences or
        blocks (``by``, ``units``), with a ``note`` that says what they are worth for video frames. Without labels there
        is nothing but the record.
        """
        if not self.labeled:
            return {**self.per_image.facts(), **self.record}
        scores = self.per_image.figures()
        named = {key: self._by_class(scores[key]) for key in _BY_CLASS if key in scores}
        never = [name for name, iou in named["iou"].items() if math.isnan(iou)]
        figures = {**scores, **named, "never_occurs": never}
        if taken := self.extra.keys() & (figures.keys() | self.record.keys()):
            raise ValueError(f"extra scores of the data set are called {sorted(taken)} as other figures, rename them")
        figures |= self.extra
        if bootstrap:
            figures["intervals"] = self._intervals(bootstrap, self._draws(bootstrap, self.resampling))
        return {**figures, "confusion": self.per_image.confusion.matrix.tolist(), **self.record}

    def gain_over(self, other: Evaluation, bootstrap: int) -> dict[str, Any]:
        """What this one scores more than ``other`` on the same images, with paired confidence intervals.

        Raises ValueError unless both were counted on the same images and with the same boundary measures.
        """
        if [pair.mask for pair in self.dataset.pairs] != [pair.mask for pair in other.dataset.pairs]:
            raise ValueError("the two evaluations are of different images, expected the same data set and split")
        measures = [(set(each.per_image.counts), each.per_image.boundary_radii) for each in (self, other)]
        if measures[0] != measures[1]:
            raise ValueError("the two evaluations have different boundary measures, expected one Request for both")
        mine, theirs = (
            summed_scores({name: counts.sum(0) for name, counts in each.per_image.counts.items()})
            for each in (self, other)
        )
        gain = {name: (mine[name] - theirs[name]).tolist() for name in mine}
        # One seed draws the same images for both
        draws, others = (each._draws(bootstrap, self.resampling) for each in (self, other))
        intervals = self._intervals(bootstrap, {name: draws[name] - others[name] for name in draws})
        return {**gain, "iou": self._by_class(gain["iou"]), "intervals": intervals}

    def worst(self, count: int) -> list[dict[str, Any]]:
        """The images of lowest mIoU, the worst first: name, index and ``miou``; those that are all void are none."""
        scores = self.per_image.image_scores()
        order = [index for index in scores.argsort(stable=True).tolist() if not scores[index].isnan()]
        names = self.dataset.pairs
        return [{"name": names[i].name, "index": i, "miou": scores[i].item()} for i in order[:count]]

    def write_pictures(self, folder: Path, worst: int = 0) -> None:
        """Write ``confusion.png``, and ``worst_RANK_NAME.png`` with image, label, prediction and errors for each."""
        _save(draw_confusion(self.per_image.confusion.matrix.numpy(), self.labels), folder / "confusion.png")
        for rank, entry in enumerate(self.worst(worst), start=1):
            prediction = self.again(entry["index"])
            image = to_pil_image(self.dataset.load(entry["index"])[0])
            sheet = error_sheet(image, prediction.ids.cpu().numpy(), prediction.target.numpy(), self.labels)
            _save(sheet, folder / f"worst_{rank:02d}_{entry['name']}.png")

    def _draws(self, bootstrap: int, resampling: Resampling) -> dict[str, Tensor]:
        counts = self.per_image.counts.items()
        return summed_scores({name: resample(each, bootstrap, units=resampling.units) for name, each in counts})

    def _intervals(self, bootstrap: int, draws: dict[str, Tensor]) -> dict[str, Any]:
        drawn = {"by": self.resampling.by, "units": self.resampling.count, "note": self.resampling.note}
        means = {name: interval(values[:, None])[0] for name, values in draws.items() if name != "iou"}
        scores = {**means, "iou": self._by_class(interval(draws["iou"]))}
        return {"draws": bootstrap, "level": LEVEL, **drawn, **scores}

    def _by_class(self, values: list[Any]) -> dict[str, Any]:
        return dict(zip(self.labels.names, values, strict=True))


def evaluate(  # noqa: PLR0913 - each is a choice of its own, as in the command
    model: str | Predict,
    data: str,
    split: str = "val",
    *,
    device: str | torch.device | None = None,
    batch_size: int = 1,
    protocol: str | os.PathLike[str] = "whole",
    boundary: bool = False,
    boundary_radii: Sequence[int] | None = None,
    bootstrap: int = 0,
    bootstrap_by: str = "image",
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model, or the pretrained model of that name, on one split of ``camvid:ROOT``, ``folder:ROOT``, ...

    A model of your own is any module or function from images (N, 3, H, W), normalised as ``preprocess`` says, to scores
    (N, K, h, w) of the data's K classes in their order; a lower resolution than the image's does.

    Predictions are compared at each label's own resolution, where ignored pixels do not count. ``protocol``,
    ``boundary``, ``boundary_radii``, ``bootstrap_by``, ``preprocess`` and the device are as in `Request`, ``bootstrap``
    as in `Evaluation.figures`; ``progress(done, total)`` is called after each image. In processes that were launched
    together each takes its share and gets the whole.

    Returns the figures that docs/evaluation.md defines. Raises DatasetError, what `create_model` raises, and ValueError
    for a model of other classes than the data's or one that gives NaN, and for labels that are all void.
    """
    request = Request(
        data=data,
        split=split,
        protocol=protocol,
        boundary=boundary,
        boundary_radii=boundary_radii,
        bootstrap_by=bootstrap_by,
        batch_size=batch_size,
        device=device,
        preprocess=preprocess,
    )
    return score_model(model, request, progress).figures(bootstrap)


def score_model(
    model: str | Predict, request: Request, progress: Progress | None = None, submission: Path | None = None
) -> Evaluation:
    """Count a model's predictions; `evaluate` says what is raised.

    ``submission`` is a folder for the predictions as the server of the data set's benchmark takes them, such as that of
    Cityscapes. A split need not be labelled then.
    """
    protocol = InferenceProtocol.load(request.protocol)
    opened = _open(request, None, submission)  # the data first: it is checked sooner than a model is loaded
    labels, resampling = opened.labels, _resampling(opened, request)
    scored = wrap_model(model, labels, request.device, request.preprocess)
    dataset = _open(request, EvalTransform(scored.preprocess), submission)
    predict = protocol.apply(scored.predict)
    kind = find_kind(request.data)
    extra = kind.extra_scores(dataset)

    def observe(prediction: Prediction) -> None:
        extra.add(prediction.index, prediction.ids, prediction.target)
        if submission is not None and kind.write_submission:
            kind.write_submission(submission, dataset.pairs[prediction.index].name, prediction.ids)

    per_image = evaluate_model(
        predict,
        dataset,
        len(labels),
        labels.ignore_index,
        boundary=request.boundary,
        boundary_radii=request.boundary_radii,
        batch_size=request.batch_size,
        progress=progress,
        observe=observe,
    )
    if submission is None:
        _check_labeled(per_image, request)
    return Evaluation(
        dataset=dataset,
        per_image=per_image,
        resampling=resampling,
        again=lambda index: next(predict_set(predict, dataset, len(labels), [index])),
        record=_record(scored.record(), request, {"name": str(request.protocol), **to_dict(protocol)}),
        extra=extra.compute(per_image.confusion.matrix),
    )


def score_predictions(
    folder: Path, request: Request, progress: Progress | None = None, *, class_ids: bool = False
) -> Evaluation:
    """Count predictions that lie in a folder as one file for each image.

    They are stored as the data set stores its masks or, with ``class_ids``, as the ids of its classes, 0 for the first.
    Raises DatasetError for missing, superfluous and misnamed files and for ones that do not fit their label, and
    ValueError for labels that are all void.
    """
    dataset = _open(request, None, None)
    labels, resampling = dataset.labels, _resampling(dataset, request)
    files = find_predictions(folder, [pair.name for pair in dataset.pairs])
    plain = MaskDecoder(ids=identity(labels))
    decode = plain if class_ids else dataset.decode
    # Cityscapes' label ids and coloured masks
    hint = "" if plain.ids.items() <= decode.ids.items() else "; are these class ids? --class-ids reads them"

    def read(index: int) -> Prediction:
        target = dataset.load(index)[1]
        ids = read_prediction(files[index], decode, target, labels.ignore_index, hint)
        return Prediction(index, ids, target, None)

    extra = find_kind(request.data).extra_scores(dataset)
    per_image = PerImageCounts(
        len(dataset),
        len(labels),
        labels.ignore_index,
        boundary=request.boundary,
        boundary_radii=request.boundary_radii,
    )
    predictions: Iterator[Prediction] = map(read, shard(len(dataset)))
    count_predictions(per_image, predictions, progress, lambda each: extra.add(each.index, each.ids, each.target))
    _check_labeled(per_image, request)
    source = {
        "model": None,
        "weights": {"uri": None, "sha256": None},
        "predictions": {"folder": str(folder), "class_ids": class_ids},
    }
    return Evaluation(
        dataset=dataset,
        per_image=per_image,
        resampling=resampling,
        again=read,
        record=_record(source, request, {"name": "predictions as they are"}),
        extra=extra.compute(per_image.confusion.matrix),
    )


def versions() -> dict[str, str]:
    """Of everything that a figure may depend on."""
    packages = {name: version(name) for name in ("torchvision", "timm", "numpy", "pillow")}
    # torch's own attribute tells builds apart, such as +cpu
    own = {"ddsm_zoo": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    return own | packages


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary)


def _open(request: Request, transform: EvalTransform | None, submission: Path | None) -> SegmentationDataset:
    if submission is None:
        return open_dataset(request.data, request.split, transform)
    if find_kind(request.data).write_submission is None:
        servers = known_specs(lambda kind: kind.write_submission)
        raise DatasetError(f"a submission is for a benchmark's server, expected {servers}, got {request.data}")
    layout = open_layout(request.data)
    if layout.files(request.split).masks:
        return layout.open(request.split, transform)
    return layout.open_unlabeled(request.split, transform)


def _resampling(dataset: SegmentationDataset, request: Request) -> Resampling:
    names = [pair.name for pair in dataset.pairs]
    return Resampling.plan(request.bootstrap_by, names, list(map(find_kind(request.data).sequence_of, names)))


def _record(source: dict[str, Any], request: Request, protocol: dict[str, Any]) -> dict[str, Any]:
    """How figures came about; count, resolutions and dtype are counted along."""
    if request.boundary:
        radii = request.boundary_radii
        measured = {"diagonal_shares": list(DIAGONAL_SHARES)} if radii is None else {"radii": list(check_radii(radii))}
        protocol |= {**measured, "boundary_iou_ratio": BoundaryIoU(1).ratio}
    return {**source, "data": request.data, "split": request.split, "protocol": protocol, "versions": versions()}


def _check_labeled(per_image: PerImageCounts, request: Request) -> None:
    if not per_image.confusion.matrix.any():
        raise ValueError(
            f"every pixel of the {len(per_image.sizes)} labels of {request.data} {request.split} is void, expected "
            "some that belong to a class; is this a split without labels?"
        )
