from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ddsm_zoo.inference.modes import full_image, multi_scale, sliding_window
from tests.support.closeness import rounding_error
from tests.support.errors import raises


def pointwise(image: Tensor) -> Tensor:
    """Scores that depend on each pixel alone: any way of cutting the image up must give the same."""
    return torch.stack([image.sum(1), image[:, 0] * image[:, 1], image[:, 2] ** 2, -image[:, 0]], 1)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    size = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    crop = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    stride = draw(st.tuples(st.integers(1, crop[0]), st.integers(1, crop[1])))
    return size, crop, stride


@given(windows())
def test_sliding_window_of_a_pointwise_function_equals_the_whole(
    case: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
) -> None:
    size, crop, stride = case
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = pointwise(image)
    # Over a pixel lie crop / stride windows an axis, rounded up, and the last one. Their scores are summed and their
    # weights too, both in float32.
    windows = math.prod(-(-length // step) + 1 for length, step in zip(crop, stride, strict=True))
    tolerance = rounding_error(2 * windows, expected.abs().max().item())
    torch.testing.assert_close(sliding_window(pointwise, crop, stride)(image), expected, atol=tolerance, rtol=0)


@given(windows())
def test_windows_never_exceed_the_crop(case: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]) -> None:
    size, crop, stride = case
    seen = set()

    def spy(image: Tensor) -> Tensor:
        seen.add(tuple(image.shape[-2:]))
        return image

    sliding_window(spy, crop, stride)(torch.zeros(1, 3, *size))
    assert seen == {(min(crop[0], size[0]), min(crop[1], size[1]))}


def test_overlap_is_weighted_toward_the_middle_of_each_window() -> None:
    calls = iter([0.0, 1.0])

    def constant(image: Tensor) -> Tensor:
        return torch.full((1, 1, *image.shape[-2:]), next(calls))

    row = sliding_window(constant, (1, 6), (1, 3))(torch.zeros(1, 3, 1, 9))[0, 0, 0]
    # weights 1 2 3 3 2 1 of both windows over the pixels 3, 4, 5 they share
    torch.testing.assert_close(row, torch.tensor([0, 0, 0, 1 / 4, 1 / 2, 3 / 4, 1, 1, 1]))


@pytest.mark.parametrize("stride", [(0, 4), (4, 9)])
def test_stride_that_leaves_gaps(stride: tuple[int, int]) -> None:
    with raises(ValueError, name="stride", expected="1 to 8"):
        sliding_window(pointwise, (8, 8), stride)


def test_multi_scale_of_one_is_softmax() -> None:
    image = torch.randn(1, 3, 5, 7)
    torch.testing.assert_close(multi_scale(pointwise, [1.0])(image), pointwise(image).softmax(1))


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.lists(st.floats(0.1, 2.0), min_size=1, max_size=3))
def test_multi_scale_gives_probabilities_at_the_image_size(size: tuple[int, int], scales: list[float]) -> None:
    result = multi_scale(pointwise, scales, flip=True)(torch.randn(1, 3, *size))
    assert result.shape == (1, 4, *size)
    torch.testing.assert_close(result.sum(1), torch.ones(1, *size))


def test_flip_makes_the_result_mirror_symmetric() -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    predict, image = multi_scale(full_image(convolution), [0.5, 1.0], flip=True), torch.randn(1, 3, 8, 12)
    torch.testing.assert_close(predict(image.flip(-1)), predict(image).flip(-1))


@pytest.mark.parametrize("scales", [[], [1.0, 0.0]])
def test_bad_scales(scales: list[float]) -> None:
    with raises(ValueError, kind="argument", name="scales"):
        multi_scale(pointwise, scales)


def test_protocols_compose() -> None:
    image = torch.randn(1, 3, 9, 11)
    composed = multi_scale(sliding_window(pointwise, (4, 4), (3, 3)), [0.5, 1.0], flip=True)
    torch.testing.assert_close(composed(image), multi_scale(pointwise, [0.5, 1.0])(image))


def test_whole_runs_in_evaluation_mode_without_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    predict, image = full_image(model), torch.randn(2, 3, 4, 4)
    model.train()
    before = model[1].running_mean.clone()
    first, second = predict(image), predict(image)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(model[1].running_mean, before)
