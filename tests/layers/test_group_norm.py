"""Group normalization in the place of batch normalization: by the definition in loops, and as an architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ddsm_zoo
from ddsm_zoo.layers.group_norm import GroupNorm2d, use_group_norm


@pytest.mark.parametrize(("channels", "groups"), [(16, 2), (24, 2), (40, 4), (64, 8), (256, 32), (1280, 32), (3, 1)])
def test_by_the_definition(channels: int, groups: int) -> None:
    norm = nn.BatchNorm2d(channels).double()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    features = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    result = GroupNorm2d(norm)(features)
    each = channels // groups
    for n in range(2):
        for first in range(0, channels, each):
            part = features[n, first : first + each]
            normal = (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
            expected = normal * norm.weight[first : first + each, None, None]
            expected = expected + norm.bias[first : first + each, None, None]
            torch.testing.assert_close(result[n, first : first + each], expected)


@pytest.mark.parametrize("name", ["uper_ddsm_tiny", "deeplabv3plus_tiny"])
def test_no_image_depends_on_the_others_in_its_batch(name: str) -> None:
    model = ddsm_zoo.create_model(name, num_classes=3, norm="group", dropout=0.0).train()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_weights_of_the_batch_normalized_model_are_taken_over_but_for_statistics(tmp_path: Path) -> None:
    original = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3)
    ddsm_zoo.save_pretrained(original, tmp_path / "batch")
    model = ddsm_zoo.create_model(f"local-dir:{tmp_path}/batch", pretrained=True, norm="group")
    given = original.state_dict()
    assert len(model.state_dict()) < len(given)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name]), name


def test_it_is_saved_and_loaded_as_what_it_is(tmp_path: Path) -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3, norm="group").eval()
    ddsm_zoo.save_pretrained(model, tmp_path)
    again = ddsm_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, 3, 40, 50)
    assert torch.equal(again(image), model(image))


def test_the_auxiliary_head_of_other_classes_has_it_too() -> None:
    model = ddsm_zoo.create_model("uper_tiny", num_classes=3, norm="group", auxiliary=True)
    model.reset_classifier(5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model.forward_auxiliary(torch.randn(1, 3, 64, 64))[1].shape == (1, 5, 64, 64)


def test_what_follows_a_norm_of_timm_stays() -> None:
    from timm.layers.norm_act import BatchNormAct2d

    model = nn.Sequential(BatchNormAct2d(8, act_layer=nn.ReLU))
    use_group_norm(model)
    assert model(torch.randn(1, 8, 4, 4)).amin() == 0
