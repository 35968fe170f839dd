"""Refinement of logits at stride 2."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ddsm_zoo
from ddsm_zoo.config import ConfigError
from ddsm_zoo.layers.common import resize
from ddsm_zoo.layers.refinement import Refinement
from ddsm_zoo.models import BackboneError, Segmenter, has_stride_2
from ddsm_zoo.utils.files import CheckpointError


def build(**changes: object) -> Segmenter:
    torch.manual_seed(0)
    return ddsm_zoo.create_model("uper_ddsm_tiny", **{"stride": 2, "num_classes": 4, **changes})


def test_it_is_a_feature_in_front_of_the_classifier() -> None:
    """By linearity the classifier of (features + residual) is what comes out."""
    torch.manual_seed(0)
    refinement, classifier = Refinement(6, 8).eval(), nn.Conv2d(8, 3, 1)
    nn.init.normal_(refinement.residual.weight)
    features, level = torch.randn(2, 8, 3, 5), torch.randn(2, 6, 6, 10)
    mixed = refinement.mix(torch.cat([resize(refinement.coarse(features), (6, 10)), refinement.fine(level)], 1))
    expected = classifier(resize(features, (6, 10)) + refinement.residual(mixed))
    actual = resize(classifier(features), (6, 10)) + refinement(features, level, classifier)
    torch.testing.assert_close(actual, expected)


def test_trained_weights_without_it_begin_with_their_own_predictions() -> None:
    plain, refined = build(stride=4).eval(), build().eval()
    refined.load_state_dict(plain.state_dict(), strict=False)
    image = torch.randn(1, 3, 50, 70)
    assert torch.equal(plain(image), refined(image))
    bundled = (
        ddsm_zoo.create_model("uper_ddsm_lite0_camvid", pretrained=True, stride=stride).eval() for stride in (2, 4)
    )
    first, second = (model(image) for model in bundled)
    assert torch.equal(first, second)


def test_all_of_it_learns() -> None:
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the residual first, which is zero and stops the gradient of the others
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64)).logsumexp(1).mean().backward()
        optimizer.step()
    assert model.refinement is not None
    still = [
        name for name, weight in model.refinement.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert still == []


def test_it_learns_lines_that_logits_at_stride_4_cannot_show() -> None:
    """Columns of two pixels in turn: bilinear resizing from stride 4 passes no such frequency."""
    image = torch.zeros(1, 3, 64, 64)
    image[..., ::4] = image[..., 1::4] = 1.0
    target = (image[:, 0] > 0.5).long()

    def accuracy(stride: int) -> float:
        model = build(stride=stride, num_classes=2).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(image), target).backward()
            optimizer.step()
        return float((model(image).argmax(1) == target).float().mean())

    assert accuracy(2) > 0.95
    assert accuracy(4) < 0.8


def test_it_serves_any_classes_and_is_saved(tmp_path: object) -> None:
    model = build().eval()
    assert model.refinement is not None
    nn.init.normal_(model.refinement.residual.weight)
    image = torch.randn(1, 3, 40, 40)
    ddsm_zoo.save_pretrained(model, str(tmp_path))
    loaded = ddsm_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.config.stride == 2
    torch.testing.assert_close(loaded(image), model(image))
    model.reset_classifier(7)
    assert model(image).shape == (1, 7, 40, 40)
    with pytest.raises(CheckpointError) as caught:  # never dropped without a word
        ddsm_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True, stride=4)
    assert caught.value.kind == "weights-mismatch"


class Adapted(nn.Module):
    """A layer with a low-rank adapter, as LoRA wraps it. `merged` is the plain layer that computes the same."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]

    def merged(self) -> nn.Conv2d:
        with torch.no_grad():
            self.base.weight += (self.up.weight.flatten(1) @ self.down.weight.flatten(1))[..., None, None]
        return self.base


def test_adapters_of_its_layers_and_the_classifier_merge_exactly() -> None:
    model = build().eval()
    assert model.refinement is not None
    nn.init.normal_(model.refinement.residual.weight)
    model.refinement.residual = first = Adapted(model.refinement.residual)
    model.classifier = second = Adapted(model.classifier)
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        adapted = model(image)
        model.refinement.residual, model.classifier = first.merged(), second.merged()
        torch.testing.assert_close(model(image), adapted)


def test_hooks_of_the_classifier_see_the_logits_last() -> None:
    model, seen = build().eval(), []
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    model(torch.zeros(1, 3, 64, 96))
    assert seen[-1] == (1, 4, 16, 24)


def test_another_classifier_may_take_its_place() -> None:
    model = build().eval()
    width = model.config.width
    model.classifier = nn.Sequential(nn.Conv2d(width, 8, 1), nn.Conv2d(8, 5, 1))
    assert model(torch.zeros(1, 3, 40, 40)).shape == (1, 5, 40, 40)


def test_a_folded_model_computes_the_same() -> None:
    model = build().eval()
    assert model.refinement is not None
    nn.init.normal_(model.refinement.residual.weight)
    image = torch.randn(1, 3, 64, 96)
    expected = model(image)
    torch.testing.assert_close(model.fuse()(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "known"), [("resnet18", True), ("tf_efficientnet_lite0", True), ("convnext_atto", False)]
)
def test_backbones_with_features_at_stride_2(backbone: str, known: bool) -> None:
    assert has_stride_2(backbone) == known
    if not known:
        with pytest.raises(BackboneError) as caught:
            build(backbone=backbone)
        assert (caught.value.kind, caught.value.name) == ("backbone-levels", backbone)


@pytest.mark.parametrize("stride", [1, 3, 8, "2"])
def test_other_strides_are_refused(stride: object) -> None:
    with pytest.raises(ConfigError) as caught:
        build(stride=stride)
    assert str(caught.value.name).endswith("stride")
