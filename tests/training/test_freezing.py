"""The stages of a network, and what is left untouched where stages or norms are frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.models import Segmenter
from ddsm_zoo.training.freezing import freeze, freeze_norm_stats, layer_groups
from ddsm_zoo.training.optimizer import parameter_groups
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises

# of each backbone the parameters of its stem, then of each stage, by how their names begin
BACKBONES: dict[str, list[tuple[str, ...]]] = {
    "resnet18d": [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)],
    "tf_efficientnet_lite0": [("conv_stem.", "bn1."), *((f"blocks.{stage}.",) for stage in range(7))],
    "regnety_002": [("stem.",), ("s1.",), ("s2.",), ("s3.",), ("s4.",)],
    "test_convnext": [("stem_0.", "stem_1."), ("stages_0.",), ("stages_1.",), ("stages_2.",), ("stages_3.",)],
}


def segmenter(backbone: str = "resnet18d", **fields: Any) -> Segmenter:
    model = Segmenter(ModelConfig(decoder="uper", backbone=backbone, num_classes=3, width=16, **fields))
    for module in model.modules():  # timm starts the last one of a block at zero, and nothing before it learns
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


@pytest.mark.parametrize(("backbone", "stages"), BACKBONES.items())
def test_stages_are_those_of_the_backbone(backbone: str, stages: list[tuple[str, ...]]) -> None:
    model = segmenter(backbone, auxiliary=True)
    names = [name for name, _ in model.named_parameters()]
    prefixes = [tuple(f"backbone.body.{start}" for start in stage) for stage in stages]
    prefixes.append(("decoder.", "auxiliary.", "classifier."))
    found = layer_groups(model)
    assert [sorted(group) for group in found] == [sorted(n for n in names if n.startswith(start)) for start in prefixes]
    assert all(found)
    assert sum(map(len, found)) == len(names)


def test_a_model_without_a_matcher_is_its_backbone_and_the_rest() -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "backbone": nn.Linear(2, 2)})
    assert layer_groups(model) == [["backbone.weight", "backbone.bias"], ["head.weight", "head.bias"]]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_positional_tables_are_not_decayed(optimizer: Any) -> None:
    model = segmenter(fusion="ddsm")
    tables = {name for name, _ in model.named_parameters() if name.endswith((".rows", ".columns"))}
    assert model.no_weight_decay() == tables != set()
    groups = parameter_groups(model, Recipe(model="m", optimizer=optimizer, weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decay[id(model.get_parameter(name))] for name in tables} == {0.0}
    assert decay[id(model.get_parameter("backbone.body.conv1.0.weight"))] == 0.5
    assert decay[id(model.get_parameter("decoder.fuse.norm.weight"))] == (0.5 if optimizer == "sgd" else 0.0)


def test_rates_fall_from_the_decoder_to_the_stem() -> None:
    model = segmenter()
    recipe = Recipe(model="m", lr=1.0, backbone_lr=0.5, stage_decay=0.1)
    rates = {id(p): group["lr"] for group in parameter_groups(model, recipe) for p in group["params"]}
    for names, expected in zip(layer_groups(model), (5e-6, 5e-5, 5e-4, 5e-3, 5e-2, 1.0), strict=True):
        for name in names:
            assert rates[id(model.get_parameter(name))] == pytest.approx(expected)


def step(model: nn.Module, recipe: Recipe) -> dict[str, torch.Tensor]:
    """One step of training on noise; the tensors before it."""
    freeze(model, recipe)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    freeze_norm_stats(model)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data -= parameter.grad
    return before


@pytest.mark.parametrize(("given", "count"), [(0, 0), (1, 1), (3, 3), ("all", 5)])
def test_frozen_stages_keep_weights_and_statistics(given: Any, count: int) -> None:
    model = segmenter()
    before = step(model, Recipe(model="m", frozen_stages=given))
    frozen = {name for names in layer_groups(model)[:count] for name in names}
    norms = {name.rsplit(".", 1)[0] for name in frozen}
    for name, tensor in model.state_dict().items():
        still = name in frozen or (name.rsplit(".", 1)[0] in norms and "running" in name)
        if still or "running" in name or name.endswith("weight"):
            assert torch.equal(tensor, before[name]) == still, name


@pytest.mark.parametrize("which", ["backbone", "all"])
def test_frozen_norms_keep_weights_and_statistics_and_nothing_else_does(which: Any) -> None:
    model = segmenter()
    before = step(model, Recipe(model="m", frozen_norms=which))
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert any(name.startswith("decoder.") for name in norms)
    for name, tensor in model.state_dict().items():
        owner = name.rsplit(".", 1)[0]
        still = owner in norms and (which == "all" or owner.startswith("backbone."))
        if still or name.endswith(("weight", "running_mean")):
            assert torch.equal(tensor, before[name]) == still, name


def test_a_frozen_norm_gives_what_it_gives_in_evaluation() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    features = torch.randn(2, 3, 5, 5) * 4 + 1
    expected = model.eval()(features)
    freeze(nn.ModuleDict({"backbone": model, "head": nn.Linear(1, 1)}), Recipe(model="m", frozen_norms="backbone"))
    model.train()
    freeze_norm_stats(model)
    assert torch.equal(model(features), expected)


def test_more_stages_than_there_are() -> None:
    with raises(ConfigError, kind="config", name="frozen_stages", got=6):
        freeze(segmenter(), Recipe(model="m", frozen_stages=6))
