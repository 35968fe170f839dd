"""The stages of a network from its input to its output, and what of them is trained."""

from __future__ import annotations

import re
from typing import Any, cast

from torch import nn

from ddsm_zoo.config import ConfigError
from ddsm_zoo.training.recipe import Recipe

# timm's sign for a group that belongs to the one before it
_JOINED = 99999


def layer_groups(model: nn.Module) -> list[list[str]]:
    """The names of the parameters from input to output: the stem, each stage of the backbone, and all that follows.

    ``model.group_matcher(coarse=True)`` tells them apart, in timm's form; without one, "backbone.*" is the only stage
    before the rest.
    """
    if hasattr(model, "group_matcher"):
        matcher = cast(dict[str, Any], cast(Any, model).group_matcher(coarse=True))
    else:
        matcher = {"backbone": r"^backbone\."}
    patterns = [
        (re.compile(pattern), place, suffix or ())
        for place, given in enumerate(matcher.values())
        for pattern, suffix in ([(given, None)] if isinstance(given, str) else given)
    ]
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, _ in model.named_parameters():
        found = ((pattern.match(name), place, suffix) for pattern, place, suffix in patterns)
        keys = ((place, *map(int, match.groups()), *suffix) for match, place, suffix in found if match)
        groups.setdefault(next(keys, (len(matcher),)), []).append(name)
    ordered: list[list[str]] = []
    for key in sorted(groups):
        if ordered and key[-1] == _JOINED:
            ordered[-1] += groups[key]
        else:
            ordered.append(groups[key])
    return ordered


def freeze(model: nn.Module, recipe: Recipe) -> None:
    """Exclude from training what ``frozen_stages`` and ``frozen_norms`` name.

    Raises ConfigError for more stages than the model has before its decoder.
    """
    *body, _ = layer_groups(model)
    count = len(body) if recipe.frozen_stages == "all" else recipe.frozen_stages
    if count > len(body):
        raise ConfigError(f"frozen_stages is {count}, expected at most the {len(body)} of this backbone, or all")
    frozen = {name for names in body[:count] for name in names}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if recipe.frozen_norms != "none":
        for name, module in model.named_modules():
            if _is_batch_norm(module) and _concerns(recipe.frozen_norms, name):
                module.requires_grad_(False)


def freeze_norm_stats(model: nn.Module) -> None:
    """Keep every batch normalisation whose weight is frozen from collecting statistics, to be called after `train`.

    It then normalises with what it has, as in evaluation.
    """
    for module in model.modules():
        if _is_batch_norm(module) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _concerns(which: str, name: str) -> bool:
    # The auxiliary head never comes with weights: it has no statistics worth keeping.
    return name.startswith("backbone.") if which == "backbone" else not name.startswith("auxiliary.")
