"""Train a model in a folder from a recipe and the name of a data set."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ddsm_zoo.config import DEFAULT_THRESHOLD, WeightsSpec
from ddsm_zoo.data.check.report import Report, require_sound
from ddsm_zoo.data.datasets import SegmentationDataset, open_dataset
from ddsm_zoo.data.kinds import dataset_title
from ddsm_zoo.data.splits import open_training_sets, training_splits
from ddsm_zoo.data.transforms import EvalTransform, TrainTransform
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.hub.safetensors_io import read_tensors
from ddsm_zoo.hub.state_dict import load_state_dict
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.layers.sampler import watch_taps
from ddsm_zoo.models import Segmenter
from ddsm_zoo.training.checkpoint import PIXELS, has_state
from ddsm_zoo.training.initial_model import choose_model
from ddsm_zoo.training.loop import Hooks, ProgressEvent, fit
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.run_lock import lock_folder
from ddsm_zoo.training.sampling import epoch_order, rarity
from ddsm_zoo.training.settle import count_classes, settle_recipe
from ddsm_zoo.training.threshold import best_threshold
from ddsm_zoo.training.visual_log import VisualLog
from ddsm_zoo.utils.distributed import rank
from ddsm_zoo.utils.memory import enough_memory
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.zoo.factory import resolve_data_config
from ddsm_zoo.zoo.publishing import describe_weights, save_pretrained

logger = logging.getLogger(__name__)


def train(  # noqa: PLR0913 - each is a choice of its own
    recipe: Recipe | str | os.PathLike[str],
    data: str,
    out_dir: str | Path,
    *,
    model: Segmenter | None = None,
    pretrained: bool | None = None,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    source: str | None = None,
    progress: Callable[[ProgressEvent], None] | None = None,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Train a recipe's model on the splits train and val of a data set.

    The data decides the number of classes. Without a split val, a part of train is held out. If the recipe leaves the
    batch size or the class weights open, they are computed first and logged. `VisualLog` shows the progress of the run
    in ``out_dir``.

    On the CPU the process keeps the memory that it frees from then on (`utils.allocator.keep_freed_memory`).

    However the run ends, ``out_dir/best`` is then a saved model with the data's labels, if a validation was reached.

    Args:
        recipe: Recipe, or its name or path as `Recipe.load` takes it.
        data: Data set such as ``folder:ROOT`` or ``camvid:ROOT``.
        out_dir: Folder of the run.
        model: Your own model with the classes of the data, trained in place from the weights it has. The recipe's model
            and overrides then only record what it was built from.
        pretrained: True starts from the model's task weights, False from random weights, None from the ImageNet weights
            of its backbone.
        changes: New values for fields of a recipe that is given by name or path. The model card lists them.
        resume: Continue the run in ``out_dir``, or start if it has no state.
        source: Name to record for a recipe that is given as a `Recipe`.
        progress: Called with the progress of the data check, the training and each validation.
        tensorboard: Also write TensorBoard events to ``out_dir/tensorboard``.

    Returns:
        The summary of `training.loop.fit`.

    Raises:
        DatasetError: The data check finds an error. ``out_dir`` is then untouched.
        ValueError: ``model`` does not fit the data, or options exclude each other.
        LookupError: An optional package is not installed.
        FolderInUseError: Another process trains in ``out_dir``.
        Exception: Anything that `fit`, `create_model`, `open_dataset` and `Recipe.load` raise.
    """
    if not isinstance(recipe, Recipe):
        source = source or Path(recipe).name
        recipe = Recipe.load(recipe, changes)
    elif changes:
        raise ArgumentError(
            f"got a Recipe and changes of {', '.join(changes)}; pass changes with the name or path of a recipe",
            kind="options",
            name="changes",
            got=list(changes),
        )
    out_dir = Path(out_dir)
    labels = open_dataset(data, "train").labels
    _check_threshold(recipe, labels)
    resumed = resume and has_state(out_dir)
    recipe, model, start = choose_model(recipe, model, labels, pretrained, resumed)
    report = _check(recipe, data, progress)
    preprocess = dataclasses.replace(resolve_data_config(model), size=None, min_size=recipe.min_size)
    transform = TrainTransform(
        preprocess,
        recipe.crop_size,
        labels.ignore_index,
        recipe.scale,
        recipe.flip,
        recipe.jitter,
        recipe.blur,
        recipe.class_crops,
    )
    train_set, val_set, trained = open_training_sets(
        data, recipe.holdout, transform, EvalTransform(preprocess), recipe.seed
    )
    counts = count_classes(recipe, train_set, trained, report)
    resolved = settle_recipe(recipe, model, len(train_set), counts, out_dir if resumed else None)
    visual_log = VisualLog(out_dir, val_set, tensorboard=tensorboard)
    overrides = {"overrides": dict(recipe.overrides)} if recipe.overrides else {}
    record = WeightsSpec(
        uri=f"file:{WEIGHTS_FILE}",
        dataset=dataset_title(data),
        labels=labels,
        preprocess=preprocess,
        recipe=source,
        start=start,
        changes={**(changes or {}), **overrides},
    )
    best = out_dir / "best" / WEIGHTS_FILE
    begun = False

    def begin(event: ProgressEvent) -> None:
        nonlocal begun
        if not begun:  # only now, since a run that fails its checks must keep the files of an earlier one
            begun = True
            # Its hash is that of weights that training will replace; a killed run must not leave the two together
            (best.parent / CONFIG_FILE).unlink(missing_ok=True)
        if progress:
            progress(event)

    summary: dict[str, Any] = {}
    with lock_folder(out_dir) if rank() == 0 else contextlib.nullcontext():
        try:
            with enough_memory("train", "choose a smaller batch_size (0 finds one that fits) or crop_size"):
                summary = fit(
                    model,
                    resolved,
                    train_set,
                    val_set,
                    out_dir,
                    ignore_index=labels.ignore_index,
                    resume=resume,
                    hooks=Hooks(
                        order=_order(recipe, counts),
                        progress=begin,
                        observe=visual_log,
                        identity={**_identity(labels, train_set, val_set, report), "initial weights": start},
                    ),
                )
        finally:
            visual_log.close()
            # A finished run reports no progress when it is resumed.
            if (begun or summary) and best.exists():
                _publish(model, best, val_set, record, summary, recipe.threshold)
    return summary


def _identity(
    labels: LabelSpace, train_set: SegmentationDataset, val_set: SegmentationDataset, report: Report | None
) -> dict[str, Any]:
    """Return what a resumed run must find again: equal counts and equal names of files do not prove equal data."""
    decode = train_set.decode
    stored = [f"{value} = {index}" for value, index in (*decode.ids.items(), *decode.colors.items())]
    pixels = {} if report is None else {split: list(each.pixels) for split, each in report.splits.items()}
    return {
        "class names": list(labels.names),
        "training images": [pair.name for pair in train_set.pairs],
        "validation images": [pair.name for pair in val_set.pairs],
        "class ids of the values in masks": sorted(stored),
        "bits of 16-bit images": train_set.bits,
        PIXELS: pixels,
    }


def _check_threshold(recipe: Recipe, labels: LabelSpace) -> None:
    """Log how a single class is scored. Raise ConfigError for a threshold of several classes."""
    if len(labels) == 1:
        logger.info("a single class: a sigmoid, and mIoU is the IoU of %s, without the background", labels.names[0])
    elif recipe.threshold != DEFAULT_THRESHOLD:
        raise ConfigError.of(
            "threshold",
            recipe.threshold,
            f"{DEFAULT_THRESHOLD}: the data has {len(labels)} classes, and only one has a threshold",
        )


def _check(recipe: Recipe, data: str, progress: Callable[[ProgressEvent], None] | None) -> Report | None:
    event = ProgressEvent(phase="check", epoch=0, epochs=recipe.epochs, done=0, total=0, loss=math.nan, miou=math.nan)

    def show(done: int, total: int) -> None:
        if progress:
            progress(dataclasses.replace(event, done=done, total=total))

    return require_sound(data, training_splits(data), show)


def _order(recipe: Recipe, counts: Tensor | None) -> Callable[[int, int, int], Sequence[int]]:
    """Return the function that draws the images of an epoch by the recipe."""
    weights = rarity(counts) if counts is not None and recipe.sampling == "balanced" else None
    return functools.partial(epoch_order, images=recipe.images_per_epoch, weights=weights)


@torch.inference_mode()
def taps_on_map(model: Segmenter, samples: SegmentationDataset, images: int = 8) -> dict[str, float]:
    """Measure the share of each sampler's taps that read the map, over the first ``images`` of ``samples``.

    ``samples`` gives images as the model takes them. Returns shares by sampler name, empty for a model without
    samplers.
    """
    device = next(model.parameters()).device
    model.eval()
    with watch_taps(model) as counts:
        for index in range(min(images, len(samples))):
            model(samples[index][0][None].to(device))
    return {name: round(count.on_map, 4) for name, count in counts.items()}


def _publish(
    model: Segmenter,
    weights: Path,
    val_set: SegmentationDataset,
    record: WeightsSpec,
    summary: dict[str, Any],
    threshold: float | Literal["auto"],
) -> None:
    """Make the folder of the best weights a saved model with the record, its score, its taps and its threshold."""
    load_state_dict(model, read_tensors(weights), str(weights))
    binary = model.num_classes == 1
    score = summary.get("best_miou")
    if binary and threshold == "auto":
        threshold, ious = best_threshold(model, val_set)
        logger.info(
            "threshold %g: IoU %.4f on val, %.4f at %g",
            threshold, ious[threshold], ious[DEFAULT_THRESHOLD], DEFAULT_THRESHOLD,
        )  # fmt: skip
        score = None if score is None else ious[threshold]
    # IoU is nan if a single class occurs nowhere
    metrics = {} if score is None or math.isnan(score) else {"iou (val)" if binary else "miou (val)": 100 * score}
    described = dataclasses.replace(
        record,
        metrics=metrics,
        taps_on_map=taps_on_map(model, val_set),
        threshold=cast(float, threshold) if binary else None,
    )
    describe_weights(model, described)
    save_pretrained(model, weights.parent)
