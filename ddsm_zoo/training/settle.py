"""The fields of a recipe that follow from the data, the machine or the run that is resumed."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddsm_zoo.data.check.report import Report
from ddsm_zoo.data.datasets import SegmentationDataset
from ddsm_zoo.models import Segmenter
from ddsm_zoo.training.batch_size import find_batch_size
from ddsm_zoo.training.checkpoint import check_parts, load_last_state
from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.precision import settle_precision
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.sampling import median_frequency

# Below this many optimizer steps a warning is logged; share of the run that ema_decay "auto" averages over
_FEW_STEPS = 100
_AVERAGED = 0.05

logger = logging.getLogger(__name__)


def settle_recipe(recipe: Recipe, model: Segmenter, images: int, counts: Tensor | None, resumed: Path | None) -> Recipe:
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
    left_open += ["frozen_norms"] if recipe.frozen_norms == "auto" else []  # only of a resumed run
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


def count_classes(
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
