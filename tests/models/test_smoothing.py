"""Levels of UPerNet that keep their smoothing convolution."""

from __future__ import annotations

import dataclasses

from torch import nn

from ddsm_zoo import create_model, model_config
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises


def smoothed(name: str, **overrides: object) -> list[bool]:
    model = create_model(name, num_classes=3, **overrides)
    return [not isinstance(part, nn.Identity) for part in model.decoder.smoothings]


def test_plain_levels_are_smoothed_unless_asked_otherwise() -> None:
    assert smoothed("uper_tiny") == [True] * 3
    assert smoothed("uper_ddsm_tiny") == [False] * 3
    assert smoothed("uper_ddsm_tiny", fused_stages=(2, 3)) == [True, False, False]
    assert smoothed("uper_ddsm_tiny", smoothing="all") == [True] * 3
    assert smoothed("uper_tiny", smoothing="none") == [False] * 3


def test_what_another_decoder_has_not_is_refused() -> None:
    config = model_config("deeplabv3plus_ddsm_tiny")
    with raises(ConfigError, kind="config", name="smoothing"):
        dataclasses.replace(config, smoothing="all")
