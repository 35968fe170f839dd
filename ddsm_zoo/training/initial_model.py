"""The model that a run starts from: of a recipe, with its initial weights, or a given one."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ddsm_zoo.config import DDSMConfig, ModelConfig
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.hub.address import public_uri
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter, has_stride_2, require_rgb, unwrap
from ddsm_zoo.training.freezing import WITHOUT_STATISTICS
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.registry import with_backbone
from ddsm_zoo.zoo.sources import look_up

# Batch norms that can be frozen, each with those before it
_NORMS = ("none", "backbone", "all")

logger = logging.getLogger(__name__)


def choose_model(
    recipe: Recipe, model: Segmenter | None, labels: LabelSpace, pretrained: bool | None, resumed: bool
) -> tuple[Recipe, Segmenter, str]:
    """Create the recipe's model, or check the given ``model``.

    Returns the recipe with the fields that follow from the model, the model, and the weights that it has, in words.
    """
    if model is None:
        recipe = _possible_stride(recipe)
        settled = settle_frozen(recipe, pretrained)
        model = _initial_model(recipe, labels, pretrained, resumed)
        start = _describe_start(recipe, model.config.backbone, pretrained)
    else:
        model = unwrap(model)
        _check_model(model, pretrained, labels)
        start = "the weights that the given model had"
        settled = recipe
        if recipe.frozen_norms == "auto":
            settled = dataclasses.replace(recipe, frozen_norms="all" if _has_statistics(model) else "none")
    if resumed and recipe.frozen_norms == "auto":
        return recipe, model, start  # `settle_recipe` takes the choice of the run's start from its state
    if settled.frozen_norms != "none":
        logger.info("frozen batch norms: %s", settled.frozen_norms)
    return settled, model, start


def _has_statistics(model: Segmenter) -> bool:
    """True if task weights gave all batch norms their statistics, except those that `freeze` leaves out.

    Of a model without task weights nobody knows which norms have seen data.
    """
    fresh = (name for name in model.provenance.fresh if name.endswith("running_mean"))
    return model.provenance.weights is not None and all(name.startswith(WITHOUT_STATISTICS) for name in fresh)


def _possible_stride(recipe: Recipe) -> Recipe:
    """Keep the logits at stride 4, and log it, if the recipe asks for stride 2 and the backbone has no such level."""
    if recipe.overrides.get("stride") != 2:
        return recipe
    entry = with_backbone(look_up(recipe.model), recipe.overrides.get("backbone"))
    if has_stride_2(entry.config.backbone):
        return recipe
    logger.info("%s has no features at stride 2: logits at stride 4", entry.config.backbone)
    return dataclasses.replace(recipe, overrides={**recipe.overrides, "stride": 4})


def settle_frozen(recipe: Recipe, pretrained: bool | None) -> Recipe:
    """Choose the batch norms to freeze if the recipe leaves it open. Raise ConfigError for layers without weights."""
    if pretrained is False and recipe.frozen_stages != 0:
        raise ConfigError(
            f"frozen_stages is {recipe.frozen_stages} and the backbone starts from random numbers, expected 0 without "
            "pretrained weights",
            kind="frozen-layers",
            name="frozen_stages",
            got=recipe.frozen_stages,
            expected=0,
        )
    trained: Literal["none", "backbone", "all"] = "all" if pretrained else "none" if pretrained is False else "backbone"
    if recipe.frozen_norms == "auto":
        return dataclasses.replace(recipe, frozen_norms=trained)
    if _NORMS.index(recipe.frozen_norms) > _NORMS.index(trained):
        raise ConfigError(
            f"frozen_norms is {recipe.frozen_norms} and "
            f"{'all' if trained == 'none' else 'those of the decoder'} start without statistics, expected {trained}, "
            "or task weights by --pretrained",
            kind="frozen-layers",
            name="frozen_norms",
            got=recipe.frozen_norms,
        )
    return recipe


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


def _describe_start(recipe: Recipe, backbone: str, pretrained: bool | None) -> str:
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
    require_rgb(model)
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
