"""Shapes cover the pixels that other code says: pycocotools' run lengths, geometry by hand, slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from ddsm_zoo.data.importing import shapes
from ddsm_zoo.data.importing.shapes import BadShape

SIDES = st.integers(1, 40)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([1, 1, 5, 1, 5, 3, 1, 3], True),
        ([1, 1, 5, 1, 5, 3, 1, 3, 1, 1], True),
        ([0.5, 0, 1, 0.5, 0.5, 1, 0, 0.5], True),  # turned by 45 degrees
        ([1, 1, 5, 1, 5, 3], False),
        ([1, 1, 5, 1, 6, 3, 2, 3], False),  # a parallelogram
        ([1, 1, 5, 1, 4, 3, 2, 3], False),
    ],
)
def test_rectangles(points: list[float], expected: bool) -> None:
    assert shapes.is_rectangle(shapes.points_of(points)) == expected


@given(SIDES, SIDES, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_as_cocos_tools_write_them(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = packed["counts"].decode()
    assert np.array_equal(shapes.coco_rle(counts, packed["size"]), mask)
    down = mask.T.ravel()
    runs = np.diff(np.flatnonzero(np.diff(down, prepend=0, append=2) != 0), prepend=0).tolist()
    assert np.array_equal(shapes.coco_rle(runs, [height, width]), mask)


@pytest.mark.parametrize("size", [(500, 700), (1, 5000)])
def test_long_runs(size: tuple[int, int]) -> None:
    mask = np.zeros(size, np.uint8)
    mask[:, 3:-7] = 1
    packed = coco.encode(np.asfortranarray(mask))
    assert np.array_equal(shapes.coco_rle(packed["counts"].decode(), size), mask)


@pytest.mark.parametrize(
    "counts", [[5, 4], [5, 400], [30, -6], [], "abc", "000", "\u00ff", "zzzzzzzzzzzzzzzzzzzzzzzz", "o"]
)
def test_run_lengths_that_do_not_add_up(counts: str | list[int]) -> None:
    with pytest.raises(BadShape):
        shapes.coco_rle(counts, [4, 6])


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=3, max_size=3, unique=True))
def test_triangles(corners: list[tuple[int, int]]) -> None:
    """Pixels whose center is a pixel away from every edge are right; nearer ones COCO's tools round in their way."""
    found = shapes.polygons([shapes.points_of(corners)])(20, 30)
    centers = np.stack(np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5), -1)
    sides, distances = [], []
    for start, end in zip(np.array(corners), np.roll(corners, -1, 0), strict=True):
        along, offset = end - start, centers - start
        sides.append(along[0] * offset[..., 1] - along[1] * offset[..., 0])
        share = np.clip((offset @ along) / (along @ along), 0, 1)[..., None]
        distances.append(np.linalg.norm(offset - share * along, axis=-1))
    inside = (np.array(sides) > 0).all(0) | (np.array(sides) < 0).all(0)
    clear = np.min(distances, axis=0) > 1
    assert np.array_equal(found & clear, inside & clear)


def test_parts_are_united() -> None:
    found = shapes.polygons([shapes.points_of([1, 1, 4, 1, 4, 3, 1, 3]), shapes.points_of([6, 2, 9, 2, 9, 5, 6, 5])])(
        6, 10
    )
    expected = np.zeros((6, 10), bool)
    expected[1:3, 1:4] = expected[2:5, 6:9] = True
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "points", [[], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 0, 5, 0, float("nan"), 5], [0, 0, 1e9, 0, 5, 5]]
)
def test_polygons_without_an_area_or_out_of_reach(points: list[float]) -> None:
    with pytest.raises(BadShape):
        shapes.points_of(points)


@pytest.mark.parametrize(("left", "top"), [(0, 0), (-2, -1), (8, 4), (20, 20), (-9, 0)])
def test_bitmaps_are_cut_at_the_border(left: int, top: int) -> None:
    pixels = np.ones((3, 4), bool)
    large = np.zeros((40, 60), bool)
    large[10 + top : 13 + top, 10 + left : 14 + left] = True
    assert np.array_equal(shapes.bitmap(lambda: pixels, left, top)(6, 10), large[10:16, 10:20])


def test_boxes_turn_clockwise_around_their_center() -> None:
    lying, standing = np.zeros((2, 12, 12), bool)
    lying[5:7, 2:10] = True
    standing[2:10, 5:7] = True
    assert np.array_equal(shapes.box(2, 5, 10, 7)(12, 12), lying)
    assert np.array_equal(shapes.box(2, 5, 10, 7, 90)(12, 12), standing)
    tilted = shapes.box(2, 5, 10, 7, 45)(12, 12)
    assert tilted[8, 8]
    assert not tilted[3, 8]


def test_ellipses() -> None:
    y, x = np.mgrid[:20, :30] + 0.5
    assert np.array_equal(shapes.ellipse((15, 10), (6, 6))(20, 30), np.hypot(x - 15, y - 10) <= 6)
    flat, turned = shapes.ellipse((15, 10), (9, 3))(20, 30), shapes.ellipse((15, 10), (3, 9), 90)(20, 30)
    assert np.array_equal(flat, turned)
    assert flat.sum() == pytest.approx(np.pi * 27, rel=0.1)
    tilted = shapes.ellipse((15, 10), (9, 2), 45)(20, 30)
    assert tilted[14, 19]
    assert not tilted[5, 19]
    with pytest.raises(BadShape):
        shapes.ellipse((1, 1), (0, 4))


def test_fractions_of_the_image() -> None:
    expected = np.zeros((20, 30), bool)
    expected[5:10, 3:15] = True
    part = shapes.points_of([0.1, 0.25, 0.5, 0.25, 0.5, 0.5, 0.1, 0.5])
    assert np.array_equal(shapes.normalized_polygon(part)(20, 30), expected)
