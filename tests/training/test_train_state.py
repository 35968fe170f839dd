"""Batch norms over all GPUs: what they keep of those they replace. In evaluation, where they work on the CPU too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ddsm_zoo.config import ModelConfig
from ddsm_zoo.models import Segmenter
from ddsm_zoo.training.train_state import sync_batch_norm
from tests.support.errors import raises


class Scaled(nn.BatchNorm2d):
    """One that does more than torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def segmenter() -> Segmenter:
    """With timm's norm and activation in one, in the backbone."""
    return Segmenter(ModelConfig(decoder="uper", backbone="tf_efficientnet_lite0", num_classes=3, width=16))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))


@pytest.mark.parametrize("build", [segmenter, plain])
@pytest.mark.parametrize("times", [1, 2])
def test_names_parameters_and_activations_stay(build: Callable[[], nn.Module], times: int) -> None:
    model = build()
    x = torch.randn(2, 3, 64, 96)
    model.train()(x)
    expected, parameters, state = model.eval()(x), dict(model.named_parameters()), list(model.state_dict())
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    for _ in range(times):
        sync_batch_norm(model)
    assert {name for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)} == norms != set()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == state
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_a_norm_that_torch_would_simplify_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(Scaled(3)))
    with raises(ValueError, name="1.0", got="Scaled", expected="BatchNorm2d"):
        sync_batch_norm(model)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def test_a_norm_of_a_registered_decoder_is_not_simplified_either() -> None:
    model = segmenter()
    model.decoder.norm = Scaled(3)
    with raises(ValueError, name="decoder.norm", got="Scaled"):
        sync_batch_norm(model)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
