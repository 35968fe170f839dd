"""Folded normalization: the same logits, nothing left to normalize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from ddsm_zoo import create_model
from ddsm_zoo.models import Segmenter
from ddsm_zoo.models.folding import fold_norms
from ddsm_zoo.utils.files import CheckpointError

MODELS = ["uper_ddsm_tiny", "deeplabv3plus_ddsm_tiny", "uper_dcn_tiny", "uper_ddsm_lite0", "deeplabv3plus_r18"]


def lived_in(name: str) -> Segmenter:
    """A model whose normalizations have statistics, scales and shifts as after a training."""
    model = create_model(name, num_classes=4, auxiliary=True).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_logits_stay(name: str) -> None:
    model = lived_in(name)
    image = torch.randn(2, 3, 75, 98)
    expected = model(image)
    fused = model.fuse()
    assert fused is model
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert fused.auxiliary is None
    torch.testing.assert_close(fused(image), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["uper_ddsm_tiny", "uper_dcn_tiny"])
@pytest.mark.parametrize("autocast", [False, True])
def test_folded_models_run_in_half_precision(name: str, autocast: bool) -> None:
    model = lived_in(name).fuse()
    image = torch.randn(1, 3, 64, 64)
    expected = model(image)
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(image)
    else:
        logits = model.bfloat16()(image.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_fused_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        lived_in("uper_tiny").fuse().save_pretrained(tmp_path / "fused")
    assert str(error.value) == "the model was fused for inference and cannot be saved; save it before fuse()"
    assert not list(tmp_path.iterdir())


def test_statistics_of_the_example_are_not_taken_in() -> None:
    model = lived_in("uper_tiny").train()
    image = torch.randn(1, 3, 64, 64)
    expected = model.eval()(image)
    torch.testing.assert_close(model.train().fuse()(image), expected, atol=1e-4, rtol=0)


def test_a_shared_convolution_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.conv(self.first(self.conv(x))))

    model = Shared().eval()
    nn.init.uniform_(model.first.running_var, 0.5, 2)
    image = torch.randn(1, 3, 5, 5)
    expected = model(image)
    fold_norms(model, image)
    assert isinstance(model.first, nn.BatchNorm2d)
    torch.testing.assert_close(model(image), expected)


class Shortcut(nn.Module):
    """The normalization has the convolution's output to share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        normed: torch.Tensor = self.norm(x)
        return normed + x


class Rectified(Shortcut):
    """The normalization takes the tensor that the convolution gave, after another layer has written to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(self.conv(x).relu_())
        return normed


@pytest.mark.parametrize("kind", [Shortcut, Rectified])
def test_an_output_that_serves_others_too_is_left_alone(kind: type[Shortcut]) -> None:
    model = kind().eval()
    nn.init.uniform_(model.norm.running_var, 0.2, 0.5)
    image = torch.randn(1, 3, 5, 5)
    expected = model(image)
    fold_norms(model, image)
    torch.testing.assert_close(model(image), expected)


def test_folding_twice_is_folding_once() -> None:
    model = lived_in("uper_ddsm_tiny")
    image = torch.randn(1, 3, 40, 40)
    expected = model.fuse()(image)
    torch.testing.assert_close(model.fuse()(image), expected, atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize(
    "parametrize",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", amount=0.5),
    ],
    ids=["weight-norm", "spectral-norm", "older-weight-norm", "older-spectral-norm", "pruned"],
)
def test_a_computed_weight_is_folded_by_its_value(parametrize: Callable[[nn.Module], object]) -> None:
    model = lived_in("uper_ddsm_tiny")
    convolutions = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        parametrize(convolution)
    with torch.no_grad():  # away from where the plain weight would do as well
        for name, parameter in model.backbone.named_parameters():
            if name.endswith(("original0", "_g")):
                parameter.mul_(1.5)
        image = torch.randn(1, 3, 64, 64)
        expected = model.eval()(image)
        fused = model.fuse()
        assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
        torch.testing.assert_close(fused(image), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
