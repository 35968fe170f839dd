"""Pictures of masks: every pixel's color is known beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from ddsm_zoo.labels import CAMVID, CITYSCAPES, Color, LabelSpace
from ddsm_zoo.utils.visualize import (
    add_legend,
    colorize,
    contrast,
    draw_confusion,
    error_map,
    error_sheet,
    overlay,
    overlay_bands,
    shares,
)
from tests.support.errors import raises

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
LABELS = LabelSpace(names=("a", "b", "c"), palette=(RED, GREEN, BLUE), ignore_index=255)
MASK = np.array([[0, 1], [2, 255]], np.uint8)


def pixels(picture: Image.Image) -> list[list[list[int]]]:
    assert picture.mode == "RGB"
    listed: list[list[list[int]]] = np.asarray(picture).tolist()
    return listed


def test_colors_are_the_palettes_and_ignored_is_black() -> None:
    assert pixels(colorize(MASK, LABELS)) == [[[*RED], [*GREEN]], [[*BLUE], [0, 0, 0]]]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_any_whole_numbers_do(dtype: type[np.integer]) -> None:
    assert pixels(colorize(MASK.astype(dtype), LABELS)) == pixels(colorize(MASK, LABELS))


def test_a_negative_ignore_index() -> None:
    labels = LabelSpace(names=("a",), palette=(RED,), ignore_index=-1)
    assert pixels(colorize(np.array([[0, -1]], np.int16), labels)) == [[[*RED], [0, 0, 0]]]
    assert pixels(colorize(np.array([[0]], np.uint8), labels)) == [[[*RED]]]


def test_shares_leave_out_the_ignored() -> None:
    mask = np.array([[0, 0, 1, 255]], np.uint8)
    assert shares(mask, LABELS) == pytest.approx({"a": 2 / 3, "b": 1 / 3, "c": 0})
    assert shares(np.full((2, 2), 255, np.uint8), LABELS) == {"a": 0, "b": 0, "c": 0}


def test_overlay_mixes_by_alpha_and_leaves_the_ignored_alone() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    mixed = pixels(overlay(image, MASK, LABELS, alpha=0.5, legend=False))
    assert mixed == [[[150, 50, 50], [50, 150, 50]], [[50, 50, 150], [100, 100, 100]]]
    assert pixels(overlay(image, MASK, LABELS, alpha=0, legend=False)) == image.tolist()
    assert pixels(overlay(image, MASK, LABELS, alpha=1, legend=False))[0] == [[*RED], [*GREEN]]


def test_overlay_takes_gray_and_transparent_pictures() -> None:
    for mode in ("L", "RGBA", "P"):
        assert overlay(Image.new(mode, (2, 2)), MASK, LABELS, legend=False).size == (2, 2)


def test_the_legend_lists_what_is_there_largest_first() -> None:
    mask = np.zeros((120, 100), np.uint8)
    mask[:, 10:] = 2
    picture = overlay(np.zeros((120, 100, 3), np.uint8), mask, LABELS, alpha=1)
    strip = np.asarray(picture)[:, 100:]
    assert picture.height == 120
    top = {color: int(np.nonzero((strip == color).all(-1))[0].min()) for color in (RED, BLUE)}
    assert top[BLUE] < top[RED]
    assert not (strip == GREEN).all(-1).any()
    assert np.array_equal(np.asarray(picture)[:, :100], np.asarray(colorize(mask, LABELS)))


def test_a_legend_of_several_masks_names_the_ignored_too() -> None:
    masks = [np.full((4, 5), 2, np.uint8), np.full((3, 3), 255, np.uint8)]
    strip = np.asarray(add_legend(Image.new("RGB", (100, 120), RED), masks, LABELS))[:, 100:]
    swatches = [tuple(strip[y, 12].tolist()) for y in (12, 30, 48)]  # text of 12 pixels, gaps of 6
    assert swatches == [BLUE, (0, 0, 0), (255, 255, 255)]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 30, 200, 4000]), st.sampled_from([1, 3, 50, 300, 4000]))
def test_the_legend_fits_any_picture(height: int, width: int) -> None:
    if height * width > 10**6:
        height = 2
    mask = (np.arange(height * width) % len(CAMVID)).reshape(height, width).astype(np.uint8)
    image = np.full((height, width, 3), 7, np.uint8)
    picture = overlay(image, mask, CAMVID, alpha=0)
    assert np.array_equal(np.asarray(picture)[:height, :width], image)
    rest = np.asarray(picture).copy()
    rest[:height, :width] = 255
    for label in np.unique(mask):
        assert (rest == CAMVID.palette[label]).all(-1).sum() >= 100  # a swatch


@pytest.mark.parametrize("size", [(400, 60), (10, 200)])  # a legend beside the picture and one below it
def test_bands_of_an_overlay_make_the_same_picture(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), size)
    whole, counted = overlay(image, mask, LABELS), shares(mask, LABELS)
    monkeypatch.setattr("ddsm_zoo.utils.visualize.BAND", 1000)
    parts = list(overlay_bands(image, mask, LABELS))
    assert max(len(part) for part in parts[:-1]) <= 1000 // size[1] + 1
    assert np.array_equal(np.concatenate(parts), np.asarray(whole))
    assert shares(mask, LABELS) == pytest.approx(counted)


def test_nothing_to_explain_needs_no_legend() -> None:
    ignored = np.full((3, 4), 255, np.uint8)
    assert overlay(np.zeros((3, 4, 3), np.uint8), ignored, LABELS).size == (4, 3)


def test_errors_are_bright_right_is_dim_and_ignored_black() -> None:
    target = np.array([[0, 0, 255, 255]], np.uint8)
    right, wrong, *ignored = pixels(error_map(np.array([[0, 1, 0, 255]], np.uint8), target, LABELS))[0]
    assert ignored == [[0, 0, 0], [0, 0, 0]]
    assert right == [50, 0, 0]
    assert min(wrong) > 150
    assert wrong[0] > wrong[1] == wrong[2]  # still a tone of the true class


def test_a_prediction_that_says_nothing_is_wrong() -> None:
    assert min(pixels(error_map(np.array([[255]], np.uint8), np.array([[1]], np.uint8), LABELS))[0][0]) > 150


def test_errors_stand_out_from_every_right_color() -> None:
    ids = np.arange(len(CAMVID), dtype=np.uint8)[None]
    right = np.asarray(error_map(ids, ids, CAMVID)).astype(int).sum(-1)
    wrong = np.asarray(error_map(np.roll(ids, 1), ids, CAMVID)).astype(int).sum(-1)
    assert wrong.min() > 2 * right.max()


def test_the_sheet_shows_image_label_prediction_and_errors() -> None:
    height, width = 90, 120
    image = np.full((height, width, 3), 9, np.uint8)
    target = np.kron(MASK, np.ones((45, 60), np.uint8))
    prediction = np.kron(np.array([[0, 1], [1, 0]], np.uint8), np.ones((45, 60), np.uint8))
    sheet = np.asarray(error_sheet(image, prediction, target, LABELS))
    caption = len(sheet) // 2 - height
    rows = [sheet[start + caption : start + caption + height] for start in (0, caption + height)]
    found = [row[:, start : start + width] for row in rows for start in (0, width)]
    expected = (image, colorize(target, LABELS), colorize(prediction, LABELS), error_map(prediction, target, LABELS))
    for panel, picture in zip(found, expected, strict=True):
        assert np.array_equal(panel, np.asarray(picture))
    for start in (0, caption + height):  # a name over every panel
        for left in (0, width):
            assert (sheet[start : start + caption, left : left + width] < 128).any()
    legend = sheet[:, 2 * width :]
    tops = [int(np.nonzero((legend == color).all(-1))[0].min()) for color in (GREEN, RED, BLUE)]
    assert tops == sorted(tops)  # b is in most of label or prediction


def test_cells_of_a_confusion_matrix_are_as_dark_as_their_share() -> None:
    """Rows are 100 % right, half right, and a class without a pixel; the middle of a cell holds the text."""
    picture = np.asarray(draw_confusion(np.array([[7, 0, 0], [4, 4, 0], [0, 0, 0]]), LABELS))
    blue = picture[..., 2].astype(int) - picture[..., 0]  # how far from gray
    left = int(np.flatnonzero(blue.any(0))[0])
    cells = blue[-14 - 3 * 44 : -14, left : left + 3 * 44].reshape(3, 44, 3, 44)
    assert cells.max(axis=(1, 3)).tolist() == [[255, 0, 0], [127, 127, 0], [0, 0, 0]]


def test_a_confusion_matrix_of_any_size_is_drawn() -> None:
    one = draw_confusion(np.array([[3]]), LabelSpace(names=("only",), palette=(RED,)))
    many = draw_confusion(np.eye(len(CAMVID), dtype=np.int64), CAMVID)
    assert many.height - one.height >= 44 * 10
    with raises(ValueError, kind="array", name="matrix", got=(2, 2), expected=(3, 3)):
        draw_confusion(np.zeros((2, 2), np.int64), LABELS)


@pytest.mark.parametrize(
    ("mask", "kind", "got"),
    [
        (np.array([[3]], np.uint8), "unknown-id", 3),
        (np.array([[-1]], np.int64), "unknown-id", -1),
        (np.array([[0.0]]), "array", "float64"),
        (np.array([[True]]), "array", "bool"),
        (np.zeros((2, 2, 3), np.uint8), "array", (2, 2, 3)),
        (np.zeros((0, 4), np.uint8), "array", (0, 4)),
        ([[0]], "array", "list"),
    ],
)
def test_other_masks_are_refused_in_one_line(mask: npt.NDArray[np.uint8], kind: str, got: object) -> None:
    image = np.zeros((1, 1, 3), np.uint8)
    good = np.zeros((1, 1), np.uint8)
    for call in (
        lambda: colorize(mask, LABELS),
        lambda: shares(mask, LABELS),
        lambda: overlay(image, mask, LABELS),
        lambda: error_map(mask, good, LABELS),
        lambda: error_map(good, mask, LABELS),
    ):
        with raises(ValueError, kind=kind, got=got):
            call()


def test_what_does_not_fit_together_is_refused() -> None:
    with raises(ValueError, name="mask", got=(2, 2), expected=(1, 3)):
        overlay(np.zeros((1, 3, 3), np.uint8), MASK, LABELS)
    with raises(ValueError, name="prediction", got=(2, 2), expected=(1, 1)):
        error_map(MASK, np.zeros((1, 1), np.uint8), LABELS)
    with raises(ValueError, name="image", got=(1, 3), expected=(2, 2)):
        error_sheet(np.zeros((1, 3, 3), np.uint8), MASK, MASK, LABELS)
    with raises(ValueError, name="alpha", got=1.5):
        overlay(np.zeros((2, 2, 3), np.uint8), MASK, LABELS, alpha=1.5)
    with raises(ValueError, kind="array", name="image", got="float64 (2, 2, 3)"):
        overlay(np.zeros((2, 2, 3)), MASK, LABELS)


# --- colors that are easy to tell apart --------------------------------------------------------------------------


def smallest_difference(colors: Sequence[Color]) -> float:
    """The smallest CIE76 difference between two of the colors, by Pillow's own conversion to L*a*b* (8 bits)."""
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    picture = ImageCms.applyTransform(Image.fromarray(np.array([colors], np.uint8)), to_lab)
    lightness, *chroma = np.moveaxis(np.asarray(picture)[0], -1, 0)
    lab = np.stack([lightness / 2.55, *(channel.view(np.int8) for channel in chroma)], -1).astype(float)
    return min(math.dist(first, second) for first, second in itertools.combinations(lab, 2))


@pytest.mark.parametrize("labels", [CAMVID, CITYSCAPES, LabelSpace.from_names([f"c{i}" for i in range(21)])])
def test_colors_that_look_alike_are_replaced_by_distinct_ones(labels: LabelSpace) -> None:
    seen = contrast(labels)
    assert (seen.names, seen.ignore_index) == (labels.names, labels.ignore_index)
    assert smallest_difference(labels.palette) < 30 < smallest_difference(seen.palette)
    assert smallest_difference([*seen.palette, (0, 0, 0), (255, 255, 255)]) > 15


@pytest.mark.parametrize("count", [1, 2, 3])
def test_colors_that_differ_are_kept(count: int) -> None:
    labels = LabelSpace(names=("a", "b", "c")[:count], palette=(RED, GREEN, BLUE)[:count])
    assert contrast(labels) == labels


def test_every_class_gets_a_color_of_its_own_whatever_the_palette() -> None:
    alike = LabelSpace(names=tuple(f"c{i}" for i in range(256)), palette=((7, 7, 7),) * 256, ignore_index=300)
    assert len(set(contrast(alike).palette)) == 256


def test_classes_get_the_distinct_color_nearest_to_their_own() -> None:
    labels = LabelSpace(names=("plant", "lawn", "sea"), palette=((0, 200, 0), (10, 210, 0), (0, 0, 240)))
    plant, lawn, sea = contrast(labels).palette
    assert sea[2] > max(sea[:2])
    assert max(plant[1] - max(plant[0], plant[2]), lawn[1] - max(lawn[0], lawn[2])) > 50
