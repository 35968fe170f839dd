"""Changes of a caller: fields of the config and of the module, options of the backbone, names of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ddsm_zoo
from ddsm_zoo.config import DDSMConfig
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.zoo.factory import create_model
from tests.support.errors import raises
from tests.support.tiny_weights import NAME


@pytest.mark.parametrize(
    ("overrides", "check"),
    [
        ({"pixels": 25}, lambda config: config.ddsm.pixels == 25 and config.ddsm.pool == 4),
        ({"ddsm": {"channels": 25}}, lambda config: config.ddsm.channels == 25 and config.ddsm.pool == 4),
        ({"ddsm": DDSMConfig(pixels=1)}, lambda config: config.ddsm == DDSMConfig(pixels=1)),
        ({"width": 16}, lambda config: config.width == 16 and config.ddsm.width == 16),
        ({"fused_stages": [2]}, lambda config: config.fused_stages == (2,)),
        ({"fusion": "none"}, lambda config: config.fusion == "none"),
        ({"num_classes": 2, "in_chans": 4}, lambda config: (config.num_classes, config.in_chans) == (2, 4)),
        ({"backbone": "r18"}, lambda config: config.backbone == "resnet18d.ra2_in1k"),
        ({"auxiliary": True}, lambda config: config.auxiliary),
    ],
)
def test_overrides_reach_the_config(overrides: dict[str, Any], check: Callable[[Any], bool]) -> None:
    model = create_model(NAME, **overrides)
    assert check(model.config)
    images = torch.rand(1, model.config.in_chans, 40, 33)
    assert model.eval()(images).shape == (1, model.config.num_classes, 40, 33)


def test_a_family_with_a_backbone_of_timm() -> None:
    assert create_model("uper_dcn", backbone="test_efficientnet.r160_in1k", width=16).num_classes == 19


@pytest.mark.parametrize(
    ("overrides", "error", "facts", "said"),
    [
        ({"pixls": 9}, TypeError, {"kind": "unknown-option", "name": "pixls"}, "'pixels'"),
        ({"ddsm": {"chanels": 9}}, TypeError, {"kind": "unknown-option", "name": "chanels"}, "'channels'"),
        ({"zzzz": 9}, TypeError, {"kind": "unknown-option", "name": "zzzz"}, "auxiliary, backbone"),
        ({"ddsm": 9}, TypeError, {"name": "ddsm", "got": "int"}, "DDSMConfig"),
        ({"pixels": 8}, ConfigError, {"name": "ddsm.pixels", "got": 8}, "square of an odd number"),
        ({"dropout": None}, ConfigError, {"expected": "float"}, "dropout"),
        ({"width": 10**6}, ConfigError, {"name": "width", "got": 10**6}, "8 to 4096"),
        ({"num_classes": 0}, ConfigError, {"name": "num_classes", "got": 0}, "1 to 65536"),
        ({"backbone": "resnet999"}, ValueError, {"kind": "backbone", "name": "resnet999"}, "resnet999"),
        ({"pretrained": True, "checkpoint_path": "x"}, ValueError, {"kind": "options"}, "pretrained"),
        ({"checkpoint_path": "absent.safetensors"}, FileNotFoundError, {"path": "absent.safetensors"}, "absent"),
    ],
)
def test_what_cannot_be_built(
    overrides: dict[str, Any], error: type[Exception], facts: dict[str, Any], said: str
) -> None:
    with raises(error, **facts) as caught:
        create_model(NAME, **overrides)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        {"checkpoint_path": "weights.pth"},
        {"pretrained_cfg": "x"},
        {"depths": [9, 9, 9, 9]},
        {"drop_path_rate": -1},
        {"act_layer": "os.system"},
        {"img_size": [64] * 5},
    ],
)
def test_options_of_the_backbone_that_a_config_may_not_have(args: dict[str, Any]) -> None:
    """A config comes from anywhere: none of them may open a file or build without an end."""
    with raises(ConfigError, kind="config", name=f"backbone_args.{next(iter(args))}"):
        create_model("uper_tiny", backbone_args=args)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("drop_path_rate", "backbone_args={'drop_path_rate': ...}"),
        ("features_only", "model.backbone"),
        ("encoder_name", "backbone="),
    ],
)
def test_options_of_timm_and_smp_are_known(option: str, hint: str) -> None:
    with raises(TypeError, kind="unknown-option", name=option) as error:
        create_model("uper_tiny", **{option: 1})
    assert hint in str(error.value)


def test_a_model_without_classes_is_refused_with_the_way_to_features() -> None:
    with raises(ConfigError, kind="config", name="num_classes", got=0) as error:
        create_model("uper_tiny", num_classes=0)
    assert "forward_features" in str(error.value)


def test_a_single_class_by_any_name() -> None:
    """``classes`` is what smp calls it."""
    images = torch.zeros(1, 3, 40, 50)
    for options in ({"num_classes": 1}, {"classes": 1}, {"labels": ["crack"]}):
        model = ddsm_zoo.create_model("uper_ddsm_tiny", **options).eval()
        assert model(images).shape == (1, 1, 40, 50)
    with raises(TypeError, kind="options"):
        ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=2, classes=1)
    assert ddsm_zoo.create_model("uper_ddsm_lite0", num_classes=1).num_classes == 1
    bundled = ddsm_zoo.create_model("uper_ddsm_lite0_camvid", pretrained=True, num_classes=1)
    assert set(bundled.provenance.fresh) == {"classifier.weight", "classifier.bias"}
