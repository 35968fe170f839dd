"""Which levels of UPerNet keep their smoothing convolution, and what the controls of an experiment share."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from ddsm_zoo import create_model, model_config
from ddsm_zoo.config import ConfigError


def smoothed(name: str, **overrides: object) -> list[bool]:
    model = create_model(name, num_classes=3, **overrides)
    return [not isinstance(part, nn.Identity) for part in model.decoder.smoothings]


def test_plain_levels_are_smoothed_unless_asked_otherwise() -> None:
    assert smoothed("uper_tiny") == [True] * 3
    assert smoothed("uper_ddsm_tiny") == [False] * 3
    assert smoothed("uper_ddsm_tiny", fused_stages=(2, 3)) == [True, False, False]
    assert smoothed("uper_ddsm_tiny", smoothing="all") == [True] * 3
    assert smoothed("uper_tiny", smoothing="none") == [False] * 3


def test_laterals_are_the_plain_decoder_without_a_way_down() -> None:
    """What stands above a level changes nothing on it: only the joined levels see the context."""
    model = create_model("uper_tiny", num_classes=3, fusion="laterals").eval()
    features = [torch.randn(1, channels, *size) for channels, size in zip(model.backbone.channels, SIZES, strict=True)]
    seen: list[torch.Tensor] = []
    model.decoder.fuse.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.decoder(features)
        model.decoder([*features[:-1], torch.randn_like(features[-1])])
    changed = (seen[0] != seen[1]).flatten(2).any(2).any(0).view(4, -1).any(1)
    assert changed.tolist() == [True, False, False, False]


SIZES = ((16, 16), (8, 8), (4, 4), (2, 2))


def test_what_another_decoder_has_not_is_refused() -> None:
    config = model_config("deeplabv3plus_ddsm_tiny")
    with pytest.raises(ConfigError, match="smoothing"):
        dataclasses.replace(config, smoothing="all")
    with pytest.raises(ConfigError, match="laterals"):
        dataclasses.replace(config, fusion="laterals")
