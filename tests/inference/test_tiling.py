"""Pictures in tiles: networks whose answer is known, and ours against themselves on the whole picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ddsm_zoo
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.inference.modes import full_image
from ddsm_zoo.inference.tiling import BLEND, MARGIN, MIN_SIDE, Tiling, largest_side, predict_bands, tiled_memory
from ddsm_zoo.utils.memory import working_memory
from tests.support.errors import raises

SIDES = st.integers(1, 3000)


@given(st.tuples(SIDES, SIDES), st.integers(MIN_SIDE, 1024), st.sampled_from([16, 32]))
def test_the_parts_of_the_tiles_cover_the_picture_once_with_their_margins(
    size: tuple[int, int], side: int, multiple: int
) -> None:
    tiling = Tiling(size=size, side=side, multiple=multiple)
    for axis in (0, 1):
        spans = tiling.spans(axis)
        assert spans[0].first == 0
        assert spans[-1].last == -(-size[axis] // multiple) * multiple
        assert all(a.last == b.first for a, b in itertools.pairwise(spans))
        for span in spans:
            assert span.length <= side or len(spans) == 1
            assert span.whole == spans[-1].last
            assert span.start % 32 == span.first % 32 == 0
            assert span.length % multiple == 0
            assert span.start == max(0, span.first - MARGIN)
            assert span.start + span.length == min(span.whole, span.last + MARGIN)


def pointwise(image: Tensor) -> Tensor:
    """Scores that depend on each pixel alone: any way of cutting the picture up must give the same."""
    return torch.stack([image.sum(1), image[:, 0] * image[:, 1], -image[:, 2]], 1)


@pytest.mark.parametrize("size", [(1, 1), (300, 1700), (1301, 700)])
def test_tiles_of_a_pointwise_function_make_the_whole(size: tuple[int, int]) -> None:
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    tiling = Tiling(size=size, side=MIN_SIDE)
    seen: list[tuple[int, int]] = []

    def read(rows: slice, columns: slice) -> Tensor:
        window = image[..., rows, columns]
        assert max(window.shape[-2:]) <= MIN_SIDE
        return window

    bands = list(predict_bands(pointwise, read, tiling, progress=lambda done, total: seen.append((done, total))))
    torch.testing.assert_close(torch.cat(bands, 2), pointwise(image))
    assert max(band.shape[2] for band in bands) <= 128
    assert all(band.untyped_storage().nbytes() == 4 * band.numel() for band in bands)  # none holds more than itself
    assert seen == [(done, 2 * len(tiling)) for done in range(1, 2 * len(tiling) + 1)]


def test_neighbors_blend_where_they_meet() -> None:
    """Two tiles side by side that say 0 and 1: a ramp between them."""
    size = (8, MIN_SIDE + 256)
    answers = iter([0.0, 1.0])
    (band,) = predict_bands(
        lambda image: torch.full((1, 1, *image.shape[-2:]), next(answers)),
        lambda rows, columns: torch.zeros(1, 3, *size)[..., rows, columns],
        Tiling(size=size, side=MIN_SIDE),
        passes=0,
    )
    middle = size[1] // 2
    row = band[0, 0, 0]
    assert not row[: middle - BLEND // 2].any()
    assert (row[middle + BLEND // 2 :] == 1).all()
    steps = row[middle - BLEND // 2 : middle + BLEND // 2].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / BLEND))


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("uper_ddsm_tiny", 4),
        ("uper_ddsm_tiny", 2),
        ("deeplabv3plus_ddsm_tiny", 4),
        ("uper_tiny", 4),
        ("uper_dcn_tiny", 4),
    ],
)
@pytest.mark.parametrize("size", [(320, 1088), (877, 141)])
def test_a_picture_in_tiles_gets_the_classes_of_the_whole(name: str, stride: int, size: tuple[int, int]) -> None:
    model = ddsm_zoo.create_model(name, num_classes=7, stride=stride)
    if model.refinement is not None:
        torch.nn.init.normal_(model.refinement.residual.weight)
    torch.nn.init.normal_(model.classifier.weight)  # random logits are nearly constant
    image = torch.from_numpy(np.moveaxis(render_scene(4, size)[0], 2, 0)[None] / np.float32(128) - 1)
    predict = full_image(model)
    expected = predict(image)
    tiling = Tiling(size=size, side=MIN_SIDE, multiple=model.backbone.multiple)
    assert len(tiling) >= 2
    found = torch.cat(list(predict_bands(predict, lambda rows, columns: image[..., rows, columns], tiling)), 2)
    assert found.shape == expected.shape
    agreement = (found.argmax(1) == expected.argmax(1)).float().mean().item()
    assert agreement >= 0.999
    assert (found - expected).abs().mean() < 0.01 * expected.std()


def test_tiles_that_meet_in_corners() -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=7)
    torch.nn.init.normal_(model.classifier.weight)
    image = torch.from_numpy(np.moveaxis(render_scene(4, (800, 777))[0], 2, 0)[None] / np.float32(128) - 1)
    tiling = Tiling(size=(800, 777), side=MIN_SIDE)
    assert len(tiling) == 4
    found = torch.cat(
        list(predict_bands(full_image(model), lambda rows, columns: image[..., rows, columns], tiling)), 2
    )
    assert (found.argmax(1) == full_image(model)(image).argmax(1)).float().mean() >= 0.999


def test_tiles_too_small_for_their_margins() -> None:
    with raises(ValueError, kind="argument", name="tile", expected=MIN_SIDE):
        Tiling(size=(10, 10), side=MIN_SIDE - 1)


@given(
    st.tuples(st.integers(1, 50_000), st.integers(1, 50_000)),
    st.floats(1, 20_000),
    st.integers(1, 256),
    st.integers(0, 2**36),
    st.integers(0, 2**34),
)
def test_the_largest_tiles_fit_and_larger_ones_do_not(
    size: tuple[int, int], per_pixel: float, num_classes: int, memory: int, taken: int
) -> None:
    free = min(memory // 2, memory - taken)

    def needed(side: int) -> float:
        return tiled_memory(side, size[1], per_pixel, num_classes)

    if per_pixel * size[0] * size[1] > free < needed(MIN_SIDE):
        with raises(ValueError, kind="memory-limit", name="memory", got=memory) as refused:
            largest_side(size, per_pixel, num_classes, memory, taken)
        advised = refused.value.expected
        assert memory < advised
        assert largest_side(size, per_pixel, num_classes, advised, taken) > 0
        return
    side = largest_side(size, per_pixel, num_classes, memory, taken)
    if per_pixel * size[0] * size[1] <= free:
        assert side == max(size)
    else:
        assert needed(side) <= free
        assert side == 4096 or needed(side + 32) > free


def test_working_memory_counts_what_lives_at_once() -> None:
    """By hand: a and b, then b and c, then c, views and changes in place for nothing; 4 bytes each."""

    def call() -> None:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)[:, :50] * 2
        c += 1
        del b
        torch.zeros(100)

    assert working_memory(call) == 8000
    assert working_memory(lambda: None) == 0
