"""Optimizer, parameter groups, learning rate schedule and weight averaging (EMA)."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.layers.sampler import OffsetConv2d
from ddsm_zoo.training.freezing import layer_groups
from ddsm_zoo.training.recipe import Recipe

# Above this rate, AdamW changes the weights of a backbone with layer norm faster than a recipe for one would
_HIGHEST_RATE = 5e-4

logger = logging.getLogger(__name__)


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Create the recipe's optimizer over the trainable parameters, in the groups of `parameter_groups`.

    Raises ValueError if every parameter is frozen.
    """
    groups = parameter_groups(model, recipe)
    if not groups:
        raise ArgumentError(
            "the model has no trainable parameter, expected at least one with requires_grad", name="model", got=0
        )
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)


def warn_of_high_rate(model: nn.Module, recipe: Recipe) -> None:
    """Log a warning if a backbone with layer norm would be trained at a rate for backbones with batch norm.

    Batch norm makes the scale of the weights in front of it irrelevant, so such backbones stand a high rate.
    """
    rate = recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
    backbone = getattr(model, "backbone", None)
    if recipe.optimizer != "adamw" or rate <= _HIGHEST_RATE or not isinstance(backbone, nn.Module):
        return
    trained = (part for part in backbone.modules() if any(weight.requires_grad for weight in part.parameters(False)))
    if any(isinstance(part, nn.LayerNorm) for part in trained):
        logger.warning("backbone_lr %.2g is high for a backbone with layer norm: try --set backbone_lr=1e-4", rate)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group parameters by learning rate ("backbone.*" has its own) and weight decay, in a stable order.

    The rate is multiplied by ``stage_decay`` for each of the model's `layer_groups` after the parameter's own. It is
    multiplied by ``sampler_lr_mult`` for the convolutions that predict offsets, in samplers and in deformable
    convolutions. What ``model.no_weight_decay()`` names, such as positional tables, is not decayed. SGD decays every
    other parameter, as in the paper. AdamW decays only the weights of convolutions and linear layers. Its decay is not
    scaled by the gradients, so it would pull norms and biases to zero, and nothing makes zero a good value for them.
    """
    backbone_lr = recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
    later = {name: above for above, names in enumerate(reversed(layer_groups(model))) for name in names}
    sampling = {
        id(weight) for part in model.modules() if isinstance(part, OffsetConv2d) for weight in part.parameters()
    }
    exempt = cast(Any, model).no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = backbone_lr if name.startswith("backbone.") else recipe.lr
            rate *= recipe.stage_decay ** later[name]
            if id(parameter) in sampling:
                rate *= recipe.sampler_lr_mult
            decayed = name not in exempt and (recipe.optimizer == "sgd" or _is_kernel(name, parameter))
            groups.setdefault((rate, recipe.weight_decay if decayed else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def schedule(step: int, steps: int, recipe: Recipe) -> float:
    """Return the factor on every learning rate at step ``step`` of ``steps``: poly decay times linear warmup.

    Args:
        step: Number of finished optimizer steps, from 0.
        steps: Number of optimizer steps of the run.
        recipe: Recipe with ``power`` and ``warmup_steps``.
    """
    warmup = recipe.warmup_steps if recipe.warmup_steps >= 1 else recipe.warmup_steps * steps
    rise = min(1.0, (step + 1) / (warmup + 1))
    return float(rise * (1 - step / steps) ** recipe.power)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to ``factor`` times the one it was created with.

    The rate depends on the step alone, so a resumed run has no schedule to restore.
    """
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Create an exponential moving average of parameters and buffers, with a shorter memory over its first steps.

    Without the shorter memory, the initial random weights would affect the average for about 1 / (1 - decay) steps.
    """

    def update(averages: Any, currents: Any, steps: Any) -> None:
        warm = min(decay, (1 + int(steps)) / (10 + int(steps)))
        cast(Any, get_ema_multi_avg_fn)(warm)(averages, currents, steps)  # has no type of its own

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _is_kernel(name: str, parameter: nn.Parameter) -> bool:
    return name.endswith("weight") and parameter.ndim >= 2
