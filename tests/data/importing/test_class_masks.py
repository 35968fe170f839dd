"""Masks of one class each become one mask: by name and folder, with soft edges, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.importing.run import import_data
from tests.support.data_sets import expect_one_line, write, write_labels
from tests.support.exports import EXPECTED, SIZE, left_out, mask, names, notes, picture

FIELD, WEED = EXPECTED == 1, EXPECTED == 2
DRAWN = np.where(EXPECTED == 3, 0, EXPECTED)


def binary(pixels: np.ndarray, white: int = 255) -> np.ndarray:
    return (pixels * white).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("images/train/a.png", "masks/train/a_{label}.png"),
        ("images/train/a.png", "masks/train/{label}/a.png"),
        ("images/train/a.png", "masks/{label}/train/a.png"),
        ("images/train/a.png", "masks/train/a/{label}.png"),
        ("images/a.png", "masks/{label}/a.png"),
        ("train/images/a.png", "train/masks/a_{label}.png"),
        ("a.png", "a_{label}.png"),
        ("images/a.png", "masks_{label}/a.png"),
        ("images/train/a.png", "{label}_mask/train/a.png"),
        ("train/images/a.png", "train/masks_{label}/a.png"),
        ("train/a/images/a.png", "train/a/masks/{label}.png"),
        ("Faces-HQ-img/a.png", "Faces-HQ-mask-anno/0/a_{label}.png"),
    ],
)
def test_places(image: str, place: str, tmp_path: Path) -> None:
    write(tmp_path / "export" / image, picture())
    for label, pixels in (("field", FIELD), ("weed", WEED)):
        write(tmp_path / "export" / place.format(label=label), binary(pixels))
    report = import_data("class-masks", tmp_path / "export", tmp_path / "new")
    assert report.splits == {"train": 1}
    assert names(tmp_path / "new") == ["background", "field", "weed"]
    np.testing.assert_array_equal(mask(tmp_path / "new", "a"), DRAWN)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    root = tmp_path / "export"
    write(root / "images/a.png", picture())
    write(root / "masks/a_field.png", binary(FIELD))
    write(root / "masks/a_weed.png", binary(WEED))
    return root


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (["background", "weed", "field"], [0, 2, 1]),
        (["soil", "field", "weed"], [0, 1, 2]),  # the class without masks is everything else
        (["Field", "Weed"], [0, 1, 2]),
        (["other"], [0, 1, 2]),
    ],
)
def test_classes_of_labels_json(export: Path, tmp_path: Path, listed: list[str], expected: list[int]) -> None:
    write_labels(export, names=listed)
    import_data("class-masks", export, tmp_path / "new")
    np.testing.assert_array_equal(mask(tmp_path / "new", "a"), np.array(expected)[DRAWN])
    spelled = {"Field": ["background", "Field", "Weed"], "other": ["background", "field", "weed"]}
    assert names(tmp_path / "new") == spelled.get(listed[0], listed)


def soft(pixels: np.ndarray, path: Path) -> None:
    """White with an edge in grays, as drawing programs leave it."""
    values = binary(pixels)
    values[0, :3] = (100, 127, 128)
    Image.fromarray(values).save(path)


def ones(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(binary(pixels, 1)).save(path)


def ones_and_twos(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(binary(pixels, 1) + np.uint8(1)).save(path)


def bits(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path)


def colored(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels[..., None] * np.array([200, 0, 0], np.uint8)).save(path)


def inverted_palette(pixels: np.ndarray, path: Path) -> None:
    """Index 0 is white."""
    image = Image.new("P", pixels.shape[::-1])
    image.putdata((~pixels).astype(np.uint8).ravel().tolist())
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)


@pytest.mark.parametrize("save", [soft, ones, ones_and_twos, bits, colored, inverted_palette])
def test_white_is_the_class_however_it_is_stored(export: Path, tmp_path: Path, save) -> None:  # type: ignore[no-untyped-def]
    save(FIELD, export / "masks/a_field.png")
    import_data("class-masks", export, tmp_path / "new")
    expected = DRAWN.copy()
    if save is soft:
        expected[0, 2] = 1
    np.testing.assert_array_equal(mask(tmp_path / "new", "a"), expected)


@pytest.mark.parametrize("place", ["masks/{label}/a.png", "masks/a_{label}.png", "masks/a_{label}_mask.png"])
def test_classes_keep_their_spelling(tmp_path: Path, place: str) -> None:
    write(tmp_path / "export/images/a.JPG", picture())
    for label, pixels in (("Auto rot", FIELD), ("Stra\u00dfe", WEED)):
        write(tmp_path / "export" / place.format(label=label), binary(pixels))
    import_data("class-masks", tmp_path / "export", tmp_path / "new")
    assert names(tmp_path / "new") == ["background", "Auto rot", "Stra\u00dfe"]
    np.testing.assert_array_equal(mask(tmp_path / "new", "a"), DRAWN)


@pytest.mark.parametrize("color", [0, 255])
def test_a_mask_that_only_its_alpha_channel_draws_is_left_out(export: Path, tmp_path: Path, color: int) -> None:
    """Read without it, the class would cover nothing, or all of the image."""
    pixels = np.full((*SIZE, 4), color, np.uint8)
    pixels[..., 3] = binary(FIELD)
    Image.fromarray(pixels).save(export / "masks/a_field.png")
    report = import_data("class-masks", export, tmp_path / "new")
    assert [count for what, count in left_out(report).items() if "alpha" in what] == [1]
    np.testing.assert_array_equal(mask(tmp_path / "new", "a"), np.where(WEED, 2, 0))


def test_what_does_not_fit_is_counted(export: Path, tmp_path: Path) -> None:
    write(export / "images/b.png", picture(1))  # no mask
    write(export / "masks/gone_field.png", binary(FIELD))
    write(export / "images/c.png", picture(2))
    write(export / "masks/c_field.png", np.arange(600).reshape(SIZE).astype(np.uint8))
    write(export / "masks/c_weed.png", binary(WEED)[1:])
    write(export / "masks/a_ring.png", binary(FIELD | (EXPECTED == 3)))
    report = import_data("class-masks", export, tmp_path / "new")
    assert left_out(report) == {
        "images without a mask": 1,
        "masks without an image": 1,
        "masks of more than two values, expected black and white": 1,
        "areas of another size than their image": 1,
    }
    assert "images where areas of several classes overlap, the later one on top" in notes(report)


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("stage1_train/{name}/images/{name}.png", "stage1_train/{name}/masks/{hash}.png"),
        ("images/{name}.png", "masks/{name}_{index}.png"),
        ("images/{name}.png", "masks/{name}/{index}.png"),
    ],
)
@pytest.mark.parametrize("listed", [None, ["nucleus"], ["rest", "nucleus"]])
def test_a_mask_for_each_object(tmp_path: Path, image: str, place: str, listed: list[str] | None) -> None:
    drawn = {"a": FIELD, "b": WEED}
    for name, pixels in drawn.items():
        write(tmp_path / "export" / image.format(name=name), picture(ord(name)))
        for index, half in enumerate((np.arange(SIZE[1]) < 12, np.arange(SIZE[1]) >= 12)):
            file = place.format(name=name, index=index, hash=f"{name}{index}" * 16)
            write(tmp_path / "export" / file, binary(pixels & half))
    if listed:
        write_labels(tmp_path / "export", names=listed)
    report = import_data("class-masks", tmp_path / "export", tmp_path / "new")
    expected = {None: ["background", "object"], 1: ["background", "nucleus"], 2: ["rest", "nucleus"]}
    assert names(tmp_path / "new") == expected[listed and len(listed)]
    assert list(report.findings.notes.counts.values()).count(4) == 1, notes(report)
    for name, pixels in drawn.items():
        np.testing.assert_array_equal(mask(tmp_path / "new", name), pixels)


def test_numbered_masks_of_several_classes_are_refused(export: Path, tmp_path: Path) -> None:
    write(export / "masks/a_1.png", binary(FIELD))
    write_labels(export, names=["background", "field", "weed"])
    expect_one_line(lambda: import_data("class-masks", export, tmp_path / "new"), "are numbered", "has 3 names")
    assert not (tmp_path / "new").exists()


def test_a_folder_without_such_masks(tmp_path: Path) -> None:
    write(tmp_path / "export/images/a.png", picture())
    write(tmp_path / "export/masks/a.png", binary(FIELD))
    expect_one_line(
        lambda: import_data("class-masks", tmp_path / "export", tmp_path / "new"),
        "has no masks for each class, expected names such as masks/NAME_road.png",
    )
