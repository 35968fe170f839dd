"""Layer groups of a network from input to output, and freezing them."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.plain_data import ConfigError

# The auxiliary head never comes with weights and the refinement seldom, so they have no statistics worth keeping.
WITHOUT_STATISTICS = ("auxiliary.", "refinement.")


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Return parameter names from input to output: a list for each backbone stage and one for everything after it.

    ``model.layer_groups()`` defines them. Without that method, "backbone.*" is one stage.
    """
    if hasattr(model, "layer_groups"):
        return cast(list[list[str]], cast(Any, model).layer_groups())
    names = [name for name, _ in model.named_parameters()]
    backbone = [name for name in names if name.startswith("backbone.")]
    rest = [name for name in names if not name.startswith("backbone.")]
    return [group for group in (backbone, rest) if group]


def freeze(model: nn.Module, recipe: Recipe) -> None:
    """Freeze the parameters that ``frozen_stages`` and ``frozen_norms`` select.

    Raises ConfigError if the model has fewer stages before its decoder.
    """
    *body, _ = layer_groups(model)
    count = len(body) if recipe.frozen_stages == "all" else recipe.frozen_stages
    if count > len(body):
        raise ConfigError.of("frozen_stages", count, f"at most the {len(body)} of this backbone, or all")
    frozen = {name for names in body[:count] for name in names}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if recipe.frozen_norms != "none":
        for name, module in model.named_modules():
            if _is_batch_norm(module) and _concerns(recipe.frozen_norms, name):
                module.requires_grad_(False)


def freeze_norm_stats(model: nn.Module) -> None:
    """Keep every batch norm with a frozen weight from updating its statistics. Call it after `train`.

    The batch norm then normalizes with its stored statistics, as in evaluation.
    """
    for module in model.modules():
        if _is_batch_norm(module) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _concerns(which: str, name: str) -> bool:
    return name.startswith("backbone.") if which == "backbone" else not name.startswith(WITHOUT_STATISTICS)
