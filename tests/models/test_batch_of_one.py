"""Training on one image at a time, down to a single pixel, where most normalizations see one value per channel."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ddsm_zoo
from ddsm_zoo.models.backbone import Backbone

BACKBONES = {"tiny": "test_resnet.r160_in1k", "r18": "resnet18d.ra2_in1k", "lite0": "tf_efficientnet_lite0.in1k"}


def assert_trains(model: nn.Module, height: int, width: int) -> None:
    model.train().zero_grad()
    logits = model(torch.randn(1, 3, height, width))
    assert logits.shape == (1, 19, height, width)
    logits.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (32, 32)])
def test_an_image_whose_deepest_features_are_few(backbone: str, size: tuple[int, int]) -> None:
    assert_trains(ddsm_zoo.create_model(f"uper_ddsm_{backbone}"), *size)


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return ddsm_zoo.create_model("uper_ddsm_tiny")


@settings(max_examples=20)
@given(st.integers(1, 70), st.integers(1, 70))
def test_an_image_of_any_size(tiny: nn.Module, height: int, width: int) -> None:
    assert_trains(tiny, height, width)


@pytest.mark.parametrize("name", BACKBONES.values())
def test_a_single_pixel_is_normalized_by_the_running_statistics(name: str) -> None:
    backbone = Backbone(name)
    for _ in range(3):  # statistics other than the initial ones
        backbone.train()(torch.randn(4, 3, 64, 64) + 1)
    before = {key: tensor.clone() for key, tensor in backbone.named_buffers()}
    pixel = torch.randn(1, 3, 1, 1)
    trained, evaluated = backbone(pixel), backbone.eval()(pixel)
    torch.testing.assert_close(trained, evaluated)
    for key, buffer in backbone.named_buffers():
        assert torch.equal(buffer, before[key]), key


@pytest.mark.parametrize("name", BACKBONES.values())
def test_larger_batches_train_as_timm_has_it(name: str) -> None:
    backbone = Backbone(name).train()
    plain = timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4)).train()
    plain.load_state_dict(backbone.body.state_dict())  # strict: the same names
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone(images), plain(images), rtol=0, atol=0)
    torch.testing.assert_close(dict(backbone.body.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)
