"""Positions of the cells that benchmarks/evidence/alignment.py measures, and the ways to resize that it compares."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.evidence import alignment
from ddsm_zoo import create_model
from ddsm_zoo.models.backbone import Backbone


def test_cells_of_a_plain_resnet_sit_at_multiples_of_the_stride() -> None:
    assert alignment.constants("resnet50s", 768) == {1: 0, 4: 0, 8: 0, 16: 0, 32: 0}


def test_pooled_shortcuts_move_cells_by_a_quarter_and_tensorflow_padding_to_the_end() -> None:
    """By hand: a 2 x 2 average is centered at 2 i + 1/2, a strided 3 x 3 at 2 i, or at 2 i + 1 if padded at the end."""
    pooled, padded = {4: 0.0}, {2: 1.0}
    for stride in (4, 8, 16):
        pooled[2 * stride] = pooled[stride] + stride * (0 + 1 / 2) / 2  # both paths weigh the same
    for stride in (2, 4, 8, 16):
        padded[2 * stride] = padded[stride] + stride * 1
    for name in ("test_resnet", "resnet18d"):
        assert alignment.constants(name, 768) == {1: 0, **pooled}
    found = alignment.constants("tf_efficientnet_lite0")
    assert found == {1: 0, **{stride: padded[stride] for stride in (4, 8, 16, 32)}}
    assert found == {stride: stride - 1 for stride in (1, 4, 8, 16, 32)}


def test_centroids_are_those_of_the_gradient() -> None:
    """Of the network with all its channels, border cells included: its gradient is the weight of each pixel."""
    backbone = Backbone("test_resnet").double().eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            nn.init.ones_(module.weight)  # timm starts the last one of a block at zero
    backbone.body.maxpool = nn.AvgPool2d(3, 2, 1)
    image = torch.ones(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    found = alignment.centroids(alignment.uniform(Backbone("test_resnet")), 96)
    columns = torch.arange(96, dtype=torch.float64)
    for features in backbone(image):
        middle = features.shape[-2] // 2
        for column, place in enumerate(found[96 // features.shape[-1]]):
            cell = features[0, :, middle, column].sum()
            (weights,) = torch.autograd.grad(cell, image, retain_graph=True)
            expected = (weights.abs().sum((0, 1, 2)) * columns).sum() / weights.abs().sum()
            torch.testing.assert_close(place, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("corners", [False, True])
def test_reading_at_the_places_of_a_convention_is_torchs_interpolation(corners: bool) -> None:
    features = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    places = alignment.corners if corners else alignment.half_pixel
    for size in ((12, 18), (24, 27), (4, 5), (1, 1)):
        expected = F.interpolate(features, size=size, mode="bilinear", align_corners=corners)
        read = alignment.interpolate(features, places(6, size[0], 96), places(9, size[1], 144))
        torch.testing.assert_close(read, expected)


def test_geometric_reading_has_no_misplacement_and_a_shift_is_a_shift() -> None:
    c = {1: 0, 4: 0, 8: 1, 16: 3, 32: 7}
    for stride in (4, 8, 16):
        off = alignment.misplacement(partial(alignment.geometric, c=c), c, stride, 384)
        torch.testing.assert_close(off, torch.zeros_like(off))
        moved = alignment.misplacement(partial(alignment.shifted, by=0.5), c, stride, 384)
        torch.testing.assert_close(moved, alignment.misplacement(alignment.half_pixel, c, stride, 384) + 0.5)
    # a map pooled to 6 cells belongs to no level
    torch.testing.assert_close(alignment.geometric(6, 12, 384, c=c), alignment.half_pixel(6, 12, 384))


def test_half_a_fine_cell_everywhere_or_none_at_one_end_and_one_at_the_other() -> None:
    """The two conventions over the levels of a plain ResNet, at a size that is a multiple of the stride."""
    c = dict.fromkeys((1, 4, 8, 16, 32), 0.0)
    torch.testing.assert_close(
        alignment.misplacement(alignment.half_pixel, c, 16, 384), torch.full((24,), -0.5, dtype=torch.float64)
    )
    off = alignment.misplacement(alignment.corners, c, 16, 384)
    torch.testing.assert_close(off, -torch.arange(24, dtype=torch.float64) / 23)
    # one pixel more is the size for which corners are made
    assert not alignment.misplacement(alignment.corners, c, 16, 385).any()


def test_a_placed_model_is_the_model_where_the_places_are_its_own() -> None:
    torch.manual_seed(0)
    model = create_model("uper_ddsm_tiny", num_classes=5).eval()
    x = torch.rand(1, 3, 90, 128)

    def logits(places: object = None) -> Tensor:
        with torch.inference_mode():
            return (alignment.place(model, places) if places else model)(x)

    own = logits()
    torch.testing.assert_close(logits(alignment.half_pixel), own, rtol=1e-4, atol=1e-5)
    assert (logits(alignment.corners) - own).abs().max() > 1e-3
    assert (logits(partial(alignment.shifted, by=0.5)) - own).abs().max() > 1e-3
