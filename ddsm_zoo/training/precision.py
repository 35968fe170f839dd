"""Precision of training that the recipe leaves open: bfloat16 if a step is faster with it on this machine."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from typing import Literal, cast

import torch
from torch import nn

from ddsm_zoo.inference.precision import GAIN, compare_speed, has_bf16
from ddsm_zoo.training.losses import create_loss
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.train_state import Objective
from ddsm_zoo.utils.distributed import all_reduce_min, init_process_group

# Images in the trial step: batch norm needs more than one, and time grows with the batch
IMAGES = 2
# Relative difference of the losses that rounding explains
TOLERANCE = 0.05

logger = logging.getLogger(__name__)


def settle_precision(recipe: Recipe, model: nn.Module, channels: int) -> Recipe:
    """Replace the precision "auto" of a recipe by "bf16" or "no".

    bf16 must make forward and backward pass of two crops of noise at least 1.1 times faster and give the same loss
    within 5 %. It is chosen only if that holds in every process. One line of the log says what was chosen, and why.

    Args:
        recipe: Recipe whose precision is open. Others are returned as they are.
        model: Model to try. It is left unchanged.
        channels: Number of input channels.
    """
    if recipe.precision != "auto":
        return recipe
    init_process_group()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gain, difference = _try(recipe, model, channels, device) if has_bf16(device) else (0.0, 0.0)
    chosen: Literal["bf16", "no"] = "bf16" if gain >= GAIN and difference <= TOLERANCE else "no"
    agreed: Literal["bf16", "no"] = "bf16" if all_reduce_min(int(chosen == "bf16")) else "no"
    if gain == 0:
        reason = f"the {device.type} has no instructions for bfloat16"
    elif difference > TOLERANCE:
        reason = f"bf16 changes the loss by {difference:.1%}"
    elif chosen != agreed:
        reason = "another process keeps float32"
    else:
        reason = f"a step in bf16 takes {1 / gain:.2f} times as long as in float32 here"
    logger.info("precision auto: %s, %s", agreed, reason)
    return dataclasses.replace(recipe, precision=agreed)


def _try(recipe: Recipe, model: nn.Module, channels: int, device: torch.device) -> tuple[float, float]:
    """Return how many times faster bf16 is, and the relative difference of the losses."""
    probe = copy.deepcopy(model).to(device).train()
    classes = cast(int, probe.num_classes)
    objective = Objective(probe, create_loss(recipe, classes, 255), recipe.auxiliary_weight).to(device)
    if recipe.channels_last:
        objective.to(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(IMAGES, channels, *recipe.crop_size).to(device)
        targets = torch.randint(0, max(2, classes), (IMAGES, *recipe.crop_size)).to(device)

        def step(half: bool) -> float:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = objective(images, targets)
            loss.backward()
            return float(loss.detach())

        full, half = step(False), step(True)
        gain = compare_speed(lambda: step(False), lambda: step(True), device)
    difference = abs(half - full) / max(abs(full), 1e-6)
    return gain, difference if math.isfinite(difference) else math.inf
