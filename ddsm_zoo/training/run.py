"""Train a model in a folder from a recipe and the name of a data set."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ddsm_zoo.config import DEFAULT_THRESHOLD, DDSMConfig, ModelConfig, WeightsSpec
from ddsm_zoo.data.check.report import Report, require_sound
from ddsm_zoo.data.datasets import SegmentationDataset, open_dataset
from ddsm_zoo.data.kinds import dataset_title
from ddsm_zoo.data.splits import open_training_sets, training_splits
from ddsm_zoo.data.transforms import EvalTransform, TrainTransform
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.hub.address import public_uri
from ddsm_zoo.hub.model_files import CONFIG_FILE, WEIGHTS_FILE
from ddsm_zoo.hub.safetensors_io import read_tensors
from ddsm_zoo.hub.state_dict import load_state_dict
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.layers.sampler import watch_taps
from ddsm_zoo.models import Segmenter, has_stride_2, unwrap
from ddsm_zoo.training.batch_size import find_batch_size
from ddsm_zoo.training.checkpoint import PIXELS, check_parts, has_state, load_last_state
from ddsm_zoo.training.loop import Hooks, ProgressEvent, fit
from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.precision import settle_precision
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.run_lock import lock_folder
from ddsm_zoo.training.sampling import epoch_order, median_frequency, rarity
from ddsm_zoo.training.threshold import best_threshold
from ddsm_zoo.training.visual_log import VisualLog
from ddsm_zoo.utils.distributed import rank
from ddsm_zoo.utils.memory import enough_memory
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.zoo.factory import create_model, resolve_data_config
from ddsm_zoo.zoo.publishing import describe_weights, save_pretrained
from ddsm_zoo.zoo.registry import with_backbone
from ddsm_zoo.zoo.sources import look_up

# Below this many optimizer steps a warning is logged; share of the run that ema_decay "auto" averages over
_FEW_STEPS = 100
_AVERAGED = 0.05

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
    start = "the weights that the given model had"
    if model is None:
        recipe = _possible_stride(recipe)
        _check_frozen(recipe, pretrained)
        model = _initial_model(recipe, labels, pretrained, resumed)
        start = _start(recipe, model.config.backbone, pretrained)
    else:
        model = unwrap(model)
        _check_model(model, pretrained, labels)
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
    counts = _class_counts(recipe, train_set, trained, report)
    resolved = _resolve_recipe(recipe, model, len(train_set), counts, out_dir if resumed else None)
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


def _possible_stride(recipe: Recipe) -> Recipe:
    """Keep the logits at stride 4, and log it, if the recipe asks for stride 2 and the backbone has no such level."""
    if recipe.overrides.get("stride") != 2:
        return recipe
    entry = with_backbone(look_up(recipe.model), recipe.overrides.get("backbone"))
    if has_stride_2(entry.config.backbone):
        return recipe
    logger.info("%s has no features at stride 2: logits at stride 4", entry.config.backbone)
    return dataclasses.replace(recipe, overrides={**recipe.overrides, "stride": 4})


def _initial_model(recipe: Recipe, labels: LabelSpace, pretrained: bool | None, resumed: bool) -> Segmenter:
    """Create the recipe's model. Initial weights are loaded unless the resumed run replaces them.

    Random weights follow from the recipe's seed, so that the same command makes the same model.
    """
    _check_overrides(recipe.overrides)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        model = create_model(
            recipe.model,
            pretrained=bool(pretrained) and not resumed,
            labels=labels,
            pretrained_backbone=True if pretrained is None and not resumed else None,
            **recipe.overrides,
        )
    _balance_fresh_rows(model, labels)
    return model


@torch.no_grad()
def _balance_fresh_rows(model: Segmenter, labels: LabelSpace) -> None:
    """Make the weights of each random classifier row sum to zero, without a bias.

    The features are activations, positive on average, so that any other random row raises or lowers its class
    everywhere. With balanced rows the first loss depends less on the seed, as docs/fine-tuning.md shows.
    """
    for name in model.provenance.reinitialized:
        row = labels.names.index(name)
        weight = model.classifier.weight[row]
        weight -= weight.mean()
        assert model.classifier.bias is not None
        model.classifier.bias[row] = 0.0


def _start(recipe: Recipe, backbone: str, pretrained: bool | None) -> str:
    """Return the weights that a run of the recipe starts from, in words. Folders are named without their path."""
    task = look_up(recipe.model).weights if pretrained else None
    if task is not None:
        folder = recipe.model.startswith("local-dir:")
        name = f"local-dir:{Path(recipe.model).name}" if folder else public_uri(recipe.model)
        return f"{name} (trained on {task.dataset})"
    return "random weights" if pretrained is False else f"ImageNet weights of {backbone}"


def _check_model(model: Segmenter, pretrained: bool | None, labels: LabelSpace) -> None:
    if pretrained is not None:
        raise ArgumentError(
            f"got a built model and pretrained={pretrained}, expected one source of weights; drop one",
            kind="options",
            name="pretrained",
            got=pretrained,
        )
    if model.fused:
        raise ArgumentError(
            "the model was fused for inference and cannot be trained; train it before fuse()", kind="fused-model"
        )
    if model.config.in_chans != 3:
        raise ArgumentError(
            f"the model takes {model.config.in_chans} channels, expected 3: images are read as RGB",
            kind="channels",
            name="in_chans",
            got=model.config.in_chans,
            expected=3,
        )
    if model.num_classes != len(labels):
        binary = "; in labels.json one name is one logit" if {model.num_classes, len(labels)} == {1, 2} else ""
        raise ArgumentError(
            f"the model has {model.num_classes} classes, expected the {len(labels)} of the data{binary}",
            kind="classes-differ",
            got=model.num_classes,
            expected=len(labels),
        )
    named = model.provenance.labels
    if named is not None and named.names != labels.names:
        logger.warning(
            "the model's classes are %s, the data's %s: each class starts from the classifier row of another; "
            "create_model(labels=[...]) keeps the rows of the classes that it knows",
            ", ".join(named.names),
            ", ".join(labels.names),
        )


def _check(recipe: Recipe, data: str, progress: Callable[[ProgressEvent], None] | None) -> Report | None:
    event = ProgressEvent(phase="check", epoch=0, epochs=recipe.epochs, done=0, total=0, loss=math.nan, miou=math.nan)

    def show(done: int, total: int) -> None:
        if progress:
            progress(dataclasses.replace(event, done=done, total=total))

    return require_sound(data, training_splits(data), show)


def _check_frozen(recipe: Recipe, pretrained: bool | None) -> None:
    """Check that frozen layers come with weights."""
    if pretrained is False and recipe.frozen_stages != 0:
        raise ConfigError(
            f"frozen_stages is {recipe.frozen_stages} and the backbone starts from random numbers, expected 0 without "
            "pretrained weights",
            kind="frozen-layers",
            name="frozen_stages",
            got=recipe.frozen_stages,
            expected=0,
        )
    needs = {"none": True, "backbone": pretrained is not False, "all": pretrained is True}
    if not needs[recipe.frozen_norms]:
        raise ConfigError(
            f"frozen_norms is {recipe.frozen_norms} and "
            f"{'all' if pretrained is False else 'those of the decoder'} start without statistics, expected "
            f"{'none' if pretrained is False else 'backbone'}, or task weights by --pretrained",
            kind="frozen-layers",
            name="frozen_norms",
            got=recipe.frozen_norms,
        )


def _class_counts(
    recipe: Recipe, train_set: SegmentationDataset, trained: Sequence[int], report: Report | None
) -> Tensor | None:
    """Count the pixels of each class in each image of ``train_set``, if the recipe needs them.

    The data check has counted all images on disk. ``trained`` selects those of the training set.
    """
    if recipe.sampling == "uniform" and recipe.class_weights != "auto":
        return None
    if report is not None:
        return torch.from_numpy(report.splits["train"].counts)[list(trained)]
    classes = len(train_set.labels.in_masks)
    masks = (train_set.load(index)[1] for index in range(len(train_set)))
    return torch.stack([torch.bincount(mask[mask < classes], minlength=classes) for mask in masks])


def _resolve_recipe(
    recipe: Recipe, model: Segmenter, images: int, counts: Tensor | None, resumed: Path | None
) -> Recipe:
    """Fill in the fields that the recipe leaves open, or those of the resumed run. Log a line if the steps are few."""
    if recipe.class_weights == "auto":
        assert counts is not None
        weights = [round(weight, 4) for weight in median_frequency(counts).tolist()]
        logger.info("class_weights %s", weights)
        recipe = dataclasses.replace(recipe, class_weights=tuple(weights))
    create_loss(recipe, model.num_classes, 255)  # refuses weights of other classes before anything is written
    left_open = ["precision"] if recipe.precision == "auto" else []
    left_open += ["batch_size", "lr", "backbone_lr"] if recipe.batch_size == 0 else []
    left_open += ["ema_decay"] if recipe.ema_decay == "auto" else []
    if left_open and resumed is not None:
        path, state = load_last_state(resumed)
        check_parts(path, state)
        return dataclasses.replace(recipe, **{name: state["recipe"].get(name) for name in left_open})
    recipe = settle_precision(recipe, model, model.config.in_chans)
    shown = min(images, recipe.images_per_epoch or images)
    if recipe.batch_size == 0:
        recipe = find_batch_size(recipe, model, model.config.in_chans, shown)
    steps = _count_steps(recipe, shown)
    if recipe.ema_decay == "auto":
        recipe = dataclasses.replace(recipe, ema_decay=round(max(0.0, 1 - 1 / (_AVERAGED * steps)), 4))
    return recipe


def _count_steps(recipe: Recipe, images: int) -> int:
    """Count the optimizer steps of a run with ``images`` in an epoch. Log a line if there are few."""
    per_epoch = math.ceil(math.ceil(images / recipe.batch_size) / recipe.gradient_accumulation)
    steps = recipe.epochs * per_epoch
    if steps < _FEW_STEPS:
        enough = math.ceil(_FEW_STEPS / per_epoch)
        logger.warning(
            "the run has only %d optimizer steps (epochs: %d, steps in each: %d); set epochs to %d for %d steps",
            steps,
            recipe.epochs,
            per_epoch,
            enough,
            enough * per_epoch,
        )
    return steps


def _order(recipe: Recipe, counts: Tensor | None) -> Callable[[int, int, int], Sequence[int]]:
    """Return the function that draws the images of an epoch by the recipe."""
    weights = rarity(counts) if counts is not None and recipe.sampling == "balanced" else None
    return functools.partial(epoch_order, images=recipe.images_per_epoch, weights=weights)


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    """Check that overrides change only the architecture, and nothing that the data decides."""
    fields = {field.name for config in (ModelConfig, DDSMConfig) for field in dataclasses.fields(config)}
    allowed = sorted(fields - {"num_classes", "in_chans"})
    for name in overrides:
        if name not in allowed:
            nearest = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected some of {', '.join(allowed)}"
            raise ConfigError(
                f"a recipe cannot override {name!r} of the model; {hint}", kind="unknown-field", name=name
            )


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
