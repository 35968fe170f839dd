"""Rendered scenes: the same for the same seed, labeled to the pixel, and like the streets of CamVid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsm_zoo.data.scenes import canvas as scene_canvas
from ddsm_zoo.data.scenes.render import SAMPLE_SEED, render_scene
from ddsm_zoo.labels import CAMVID
from tests.support.errors import raises

SMALL = (90, 120)


def test_the_class_ids_are_camvids() -> None:
    names = ("SKY", "BUILDING", "POLE", "ROAD", "PAVEMENT", "TREE", "SIGN", "FENCE", "CAR", "PEDESTRIAN", "BICYCLIST")
    for constant, name in zip(names, CAMVID.names, strict=True):
        assert name.upper().startswith(constant)
        assert CAMVID.names[getattr(scene_canvas, constant)] == name


def test_a_seed_is_a_scene() -> None:
    image, mask = render_scene(3, SMALL)
    again, mask_again = render_scene(3, SMALL)
    other, _ = render_scene(4, SMALL)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    assert not np.array_equal(image, other)


def test_arrays_can_be_written_to() -> None:
    image, mask = render_scene(0, SMALL)
    assert image.flags.writeable
    assert mask.flags.writeable
    assert not np.shares_memory(image, mask)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 60), st.integers(1, 60))
def test_any_seed_and_size(seed: int, height: int, width: int) -> None:
    image, mask = render_scene(seed, (height, width))
    assert image.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {*range(len(CAMVID)), CAMVID.ignore_index}


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert render_scene(1, size)[1].shape == size


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 5)])
def test_an_impossible_size_is_named(size: tuple[int, int]) -> None:
    with raises(ValueError, kind="argument", name="size", got=size):
        render_scene(0, size)


def test_every_class_occurs_in_most_scenes_and_the_big_ones_as_often_as_in_camvid() -> None:
    # share of the labeled pixels of the CamVid training images
    camvid = {"Sky": 0.176, "Building": 0.244, "Road": 0.330, "Tree": 0.099, "Car": 0.060, "Pavement": 0.048}
    counts = np.stack([np.bincount(render_scene(seed)[1].ravel(), minlength=256) for seed in range(12)])
    assert ((counts[:, : len(CAMVID)] > 30).mean(0) >= 0.75).all()
    share = counts[:, : len(CAMVID)].sum(0) / counts[:, : len(CAMVID)].sum()
    for name, expected in camvid.items():
        assert expected / 2.5 < share[CAMVID.names.index(name)] < expected * 1.5, name


def test_the_scene_is_a_street() -> None:
    """Sky above, road below: where the classes lie in every picture taken from a car."""
    for seed in range(4):
        _, mask = render_scene(seed, SMALL)
        rows = [np.nonzero(mask == label)[0].mean() for label in (scene_canvas.SKY, scene_canvas.ROAD)]
        assert rows[0] < 0.4 * SMALL[0]
        assert rows[1] > 0.6 * SMALL[0]
        assert (mask[-1] == scene_canvas.ROAD).mean() > 0.5


def test_labels_follow_what_is_seen() -> None:
    """Where two classes meet, the picture changes more than inside one: the mask is neither shifted nor flipped."""
    image, mask = render_scene(SAMPLE_SEED)
    change = np.abs(np.diff(image.astype(int), axis=1)).sum(-1)
    border = mask[:, 1:] != mask[:, :-1]

    def contrast(shift: int) -> float:
        return float(change[:, 10:-10][np.roll(border, shift, axis=1)[:, 10:-10]].mean())

    assert contrast(0) > 2.5 * change[~border].mean()
    assert contrast(0) == max(contrast(shift) for shift in (-3, -2, 0, 2, 3))


def test_one_call_paints_the_picture_and_its_label() -> None:
    canvas = scene_canvas.Canvas(np.random.Generator(np.random.PCG64(0)), (40, 60))
    before = np.asarray(canvas.image).copy()
    canvas.box((-1, 0, 6), (1, 1.4, 6), (250, 20, 20), scene_canvas.CAR)
    changed = (np.asarray(canvas.image) != before).any(-1)
    assert changed.any()
    assert np.array_equal(changed, np.asarray(canvas.labels) == scene_canvas.CAR)


def test_twice_as_far_is_half_as_big() -> None:
    canvas = scene_canvas.Canvas(np.random.Generator(np.random.PCG64(0)), (400, 600))
    near, far = (canvas.project(2, 1, z)[0] - canvas.project(-2, 1, z)[0] for z in (8, 16))
    assert near == pytest.approx(2 * far, abs=2)
    assert canvas.project(0, scene_canvas.EYE, 5)[1] == canvas.project(0, scene_canvas.EYE, 500)[1]


def test_the_sample_shows_all_classes() -> None:
    _, mask = render_scene(SAMPLE_SEED)
    assert set(range(len(CAMVID))) <= set(np.unique(mask).tolist())
