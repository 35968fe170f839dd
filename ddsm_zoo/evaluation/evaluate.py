"""Score a model or a folder of predictions on a data set, and record everything that the scores depend on."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddsm_zoo.config import Preprocess, check_threshold
from ddsm_zoo.data.check.palettes import PaletteCheck
from ddsm_zoo.data.check.report import require_sound
from ddsm_zoo.data.datasets import SegmentationDataset, open_dataset
from ddsm_zoo.data.kinds import find_kind, known_specs, open_layout
from ddsm_zoo.data.masks import DatasetError, MaskDecoder, identity, settle
from ddsm_zoo.data.pairs import UnlabeledImages
from ddsm_zoo.data.predictions import find_predictions, read_prediction
from ddsm_zoo.data.transforms import EvalTransform
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.evaluation.accumulate import (
    PerImageCounts,
    Prediction,
    count_predictions,
    evaluate_model,
    predict_set,
)
from ddsm_zoo.evaluation.result import Evaluation
from ddsm_zoo.evaluation.scored_model import wrap_model
from ddsm_zoo.inference.modes import Predict, keeping_mode
from ddsm_zoo.inference.precision import Precision, agree_on_precision
from ddsm_zoo.inference.protocol import InferenceProtocol
from ddsm_zoo.metrics import BoundaryIoU
from ddsm_zoo.metrics.bootstrap import Resampling, check_unit
from ddsm_zoo.metrics.boundary import DIAGONAL_SHARES, check_radii
from ddsm_zoo.utils import Progress
from ddsm_zoo.utils.distributed import shard, world_size
from ddsm_zoo.utils.plain_data import to_dict
from ddsm_zoo.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Data and settings of an evaluation.

    Attributes:
        data: Data set such as ``camvid:ROOT`` or ``folder:ROOT``.
        split: Split of the data set.
        protocol: Name in `inference.protocol.PROTOCOLS`, or path of a TOML file.
        boundary: Add the boundary F-score and Boundary IoU.
        boundary_radii: Radii of the boundary F-score in pixels, the same for every image. Unless given, the published
            shares of each image's diagonal.
        bootstrap_by: Unit that the bootstrap draws: ``image``, ``sequence`` or ``block:N``, as in
            `metrics.bootstrap.Resampling.plan`.
        batch_size: Maximum number of images of equal size that are predicted together.
        device: Torch device. Unless given, a GPU if there is one.
        preprocess: Preprocessing of the images. Unless given, that of the model's training or, if unknown, ImageNet's.
        threshold: For a model of a single class, the probability above which a pixel is the class. Unless given, that
            of the weights.
        precision: "fp32", "bf16", or "auto" for the one `inference.precision.choose_precision` finds with the middle of
            the first image. The record of the scores names it if it is not fp32.

    Raises:
        ValueError: The threshold is not between 0 and 1, radii are invalid or given without ``boundary``, or
            ``bootstrap_by`` is unknown.
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
    threshold: float | None = None
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_unit(self.bootstrap_by)
        if self.threshold is not None:
            check_threshold(self.threshold, num_classes=1)
        if self.boundary_radii is None:
            return
        check_radii(self.boundary_radii)
        if not self.boundary:
            raise ArgumentError(
                "boundary radii belong to the boundary F-score, expected boundary=True (--boundary) too",
                kind="options",
                name="boundary_radii",
            )


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
    threshold: float | None = None,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model on one split of a data set.

    Predictions are compared at each label's own resolution. Ignored pixels do not count. In distributed runs the
    processes share the images, and every process gets all scores.

    Args:
        model: Name of a pretrained model, or your own module or function. It maps images (N, 3, H, W), normalized by
            ``preprocess``, to scores (N, K, h, w) of the data's K classes in their order. The scores may have a lower
            resolution than the images. For a single class they are logits (N, 1, h, w).
        data: Data set such as ``camvid:ROOT`` or ``folder:ROOT``.
        split: Split of the data set.
        device: Torch device. Unless given, a GPU if there is one.
        batch_size: Maximum number of images of equal size that are predicted together.
        protocol: Name in `inference.protocol.PROTOCOLS`, or path of a TOML file.
        boundary: Add the boundary F-score and Boundary IoU.
        boundary_radii: Radii of the boundary F-score in pixels, the same for every image. Unless given, the published
            shares of each image's diagonal.
        bootstrap: Number of draws for 95 % confidence intervals, 0 for none.
        bootstrap_by: Unit that the bootstrap draws: ``image``, ``sequence`` or ``block:N``.
        preprocess: Preprocessing of the images. Unless given, that of the model's training or, if unknown, ImageNet's.
        threshold: For a model of a single class, the probability above which a pixel is the class. Unless given, that
            of the weights.
        precision: "fp32", "bf16", or "auto": bf16 if it is faster here and finds the same classes in the middle of the
            first image, in every process of a launch. Functions take "fp32" alone.
        progress: Called as ``progress(done, total)`` after each image.

    Returns:
        Scores as fractions of 1 with everything they depend on, as docs/evaluation.md defines them.

    Raises:
        DatasetError: The data set cannot be read, or its check finds an error.
        ValueError: The model has other classes than the data or gives NaN, all labels are void, or an option is
            invalid.
        Exception: Anything that `create_model` raises.
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
        threshold=threshold,
        precision=precision,
    )
    with keeping_mode(model):
        return score_model(model, request, progress).figures(bootstrap)


def score_model(
    model: str | Predict,
    request: Request,
    progress: Progress | None = None,
    submission: Path | None = None,
    *,
    checked: bool = False,
) -> Evaluation:
    """Count a model's predictions on a data set.

    Args:
        model: Name of a pretrained model, or your own module or function, as for `evaluate`.
        request: Data and settings.
        progress: Called as ``progress(done, total)`` after each image.
        submission: Folder for the predictions in the format of the benchmark's server, such as that of Cityscapes. The
            split then needs no labels.
        checked: Skip the check of the data, because an earlier call has made it.

    Returns:
        The counts, from which `Evaluation.figures` computes the scores.

    Raises:
        Exception: Anything that `evaluate` raises.
    """
    protocol = InferenceProtocol.load(request.protocol)
    opened = _open(request, None, submission)  # the data first: checking it is faster than loading a model
    if not checked and not isinstance(opened, UnlabeledImages):
        require_sound(request.data, [request.split])
    labels, resampling = opened.labels, _resampling(opened, request)
    scored = wrap_model(model, labels, request.device, request.preprocess, request.threshold, request.precision)
    dataset = _open(request, EvalTransform(scored.preprocess), submission)
    if request.precision == "auto" and scored.module is not None and world_size() > 1:
        agree_on_precision(scored.module.eval(), dataset[0][0][None])
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
        threshold=scored.threshold,
        progress=progress,
        observe=observe,
    )
    if submission is None:
        _check_labeled(per_image, request)
    return Evaluation(
        dataset=dataset,
        per_image=per_image,
        resampling=resampling,
        again=lambda index: next(predict_set(predict, dataset, len(labels), [index], threshold=scored.threshold)),
        record=_record(scored.record(), request, {"name": str(request.protocol), **to_dict(protocol)}),
        extra=extra.compute(per_image.confusion.matrix),
    )


def score_predictions(
    folder: Path, request: Request, progress: Progress | None = None, *, class_ids: bool = False
) -> Evaluation:
    """Count predictions in a folder that has one file for each image.

    Args:
        folder: Folder of the predictions.
        request: Data and settings.
        progress: Called as ``progress(done, total)`` after each image.
        class_ids: Read the files as class ids, 0 for the first class. Otherwise they are encoded like the masks of the
            data set.

    Returns:
        The counts, from which `Evaluation.figures` computes the scores.

    Raises:
        DatasetError: The check of the data finds an error, or files are missing, superfluous or misnamed, or do not fit
            their label.
        ValueError: All labels are void.
    """
    dataset = _open(request, None, None)
    labels, resampling = dataset.labels, _resampling(dataset, request)
    files = find_predictions(folder, [pair.name for pair in dataset.pairs])
    require_sound(request.data, [request.split])
    plain = MaskDecoder(ids=identity(labels), open_255=len(labels.in_masks) == 2)
    decode = settle(plain if class_ids else dataset.decode, files)
    if decode.plain:
        logger.warning("the predictions in %s hold 0 and 255, which are read as 0 and 1", folder)
    # The hint is for data whose masks do not hold class ids, such as Cityscapes' label ids and colored masks
    stored = (decode.plain or decode).ids
    hint = "" if plain.ids.items() <= stored.items() else "; are these class ids? --class-ids reads them"
    if hint and stored.keys() & plain.ids.keys():  # both readings are possible
        meaning = decode.describe(labels)
        logger.info("the predictions are read as the masks are: %s; --class-ids reads class ids instead", meaning)

    palettes = PaletteCheck()

    def read(index: int) -> Prediction:
        target = dataset.load(index)[1]
        ids = read_prediction(files[index], decode, target, labels.ignore_index, palettes, hint)
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
    """Return the versions of everything that a score may depend on."""
    packages = {name: version(name) for name in ("torchvision", "timm", "numpy", "pillow")}
    # torch's own attribute tells builds apart, such as +cpu
    own = {"ddsm_zoo": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    return own | packages


def _open(request: Request, transform: EvalTransform | None, submission: Path | None) -> SegmentationDataset:
    if submission is None:
        return open_dataset(request.data, request.split, transform)
    if find_kind(request.data).write_submission is None:
        servers = known_specs(lambda kind: kind.write_submission)
        raise DatasetError(
            f"a submission is for a benchmark's server, expected {servers}, got {request.data}",
            kind="options",
            got=request.data,
            expected=servers,
        )
    layout = open_layout(request.data)
    if layout.files(request.split).masks:
        return layout.open(request.split, transform)
    return layout.open_unlabeled(request.split, transform)


def _resampling(dataset: SegmentationDataset, request: Request) -> Resampling:
    names = [pair.name for pair in dataset.pairs]
    return Resampling.plan(request.bootstrap_by, names, list(map(find_kind(request.data).sequence_of, names)))


def _record(source: dict[str, Any], request: Request, protocol: dict[str, Any]) -> dict[str, Any]:
    """Build the record of an evaluation. Count, resolutions and dtype are part of the counts."""
    if request.boundary:
        radii = request.boundary_radii
        measured = {"diagonal_shares": list(DIAGONAL_SHARES)} if radii is None else {"radii": list(check_radii(radii))}
        protocol |= {**measured, "boundary_iou_ratio": BoundaryIoU(1).ratio}
    return {**source, "data": request.data, "split": request.split, "protocol": protocol, "versions": versions()}


def _check_labeled(per_image: PerImageCounts, request: Request) -> None:
    if not per_image.confusion.matrix.any():
        raise ArgumentError(
            f"every pixel of the {len(per_image.sizes)} labels of {request.data} {request.split} is void, expected "
            "some that belong to a class; is this a split without labels?",
            kind="void-mask",
            name=request.data,
        )
