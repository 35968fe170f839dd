"""Data sets as people nest and name them: which image gets which mask, and the line that says so."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest

from ddsm_zoo.data.check.report import check_data, require_sound
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.splits import training_splits
from tests.support.data_sets import IDS, IMAGE, expect_one_line, write, write_labels

SPLITS = {"train": ("a", "b"), "val": ("c",)}


def mask_of(name: str) -> np.ndarray:
    """Ids that differ from image to image."""
    return np.roll(IDS % 3, ord(name), 1)


def build(root: Path, image: str, mask: str, called: dict[str, str] | None = None) -> str:
    """A data set with images and masks at these places, where {split} and {name} are filled in."""
    for split, names in SPLITS.items():
        for name in names:
            words = {"split": (called or {}).get(split, split), "name": name}
            write(root / image.format(**words), np.roll(IMAGE, ord(name), 0))
            write(root / mask.format(**words), mask_of(name))
    write_labels(root)
    return f"folder:{root}"


def notes(data: str) -> dict[str, str]:
    report = check_data(data)
    assert report.errors == []
    return {problem.split: str(problem) for problem in report.problems if problem.kind == "arrangement"}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{split}/images/{name}.png", "{split}/masks/{name}.png"),
        ("{split}/images/{name}.jpg", "{split}/labels/{name}.png"),
        ("images/{split}/{name}.png", "labels/{split}/{name}.png"),
        ("images/{split}/{name}.png", "annotations/{split}/{name}.png"),
        ("imgs/{split}/{name}.png", "gt/{split}/{name}.png"),
        ("Images/{split}/{name}.png", "Masks/{split}/{name}.png"),
        ("{split}/{name}.png", "{split}_masks/{name}_mask.png"),
        ("{split}_images/{name}.png", "{split}_masks/{name}.png"),
        ("images/{split}/{name}.png", "images/{split}/{name}_mask.png"),
        ("images/{split}/{name}.jpg", "images/{split}/{name}.png"),
        ("{split}/{name}.jpg", "{split}/{name}_mask.png"),
        ("{split}/scene/{name}.jpg", "{split}/scene/{name}-gt.png"),
        ("RGB_images/{split}/{name}.png", "Labels_v2/{split}/{name}.png"),
    ],
)
def test_places_of_images_and_masks(tmp_path: Path, image: str, mask: str) -> None:
    data = build(tmp_path, image, mask)
    assert training_splits(data) == ("train", "val")
    for split, names in SPLITS.items():
        items = open_dataset(data, split)
        assert [pair.name.rpartition("/")[2] for pair in items.pairs] == list(names)
        for name, (_, found) in zip(names, items, strict=True):
            np.testing.assert_array_equal(found, mask_of(name))
    said = notes(data)
    assert said.keys() == SPLITS.keys()
    for split, text in said.items():
        for place in (image, mask):
            folder = place.format(split=split, name="").rpartition("/")[0].removesuffix("/scene")
            assert f"from {folder}" in text


@pytest.mark.parametrize("val", ["valid", "validation", "Validation", "dev", "val2017"])
@pytest.mark.parametrize("place", ["{kind}/{{split}}/{{name}}.png", "{{split}}/{kind}/{{name}}.png"])
def test_a_split_under_another_name(tmp_path: Path, val: str, place: str, caplog: pytest.LogCaptureFixture) -> None:
    data = build(tmp_path, *(place.format(kind=kind) for kind in ("images", "masks")), {"val": val})
    assert training_splits(data) == ("train", "val")
    for split in ("val", val):  # by the name of its folder too
        (item,) = open_dataset(data, split)
        np.testing.assert_array_equal(item[1], mask_of("c"))
    with caplog.at_level(logging.WARNING):
        require_sound(data, ["val"])
    folders = [place.format(kind=kind).format(split=val, name="").rpartition("/")[0] for kind in ("images", "masks")]
    assert caplog.messages == [f"{data}: val: images read from {folders[0]}, masks from {folders[1]}"]


def test_masks_whose_split_has_another_name_than_that_of_the_images(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{split}/{name}.png", "masks/{split}/{name}.png")
    (tmp_path / "masks/val").rename(tmp_path / "masks/valid")
    assert notes(data) == {"val": "val: images read from images/val, masks from masks/valid"}


def test_two_folders_that_may_be_val_are_neither(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{split}/{name}.png", "masks/{split}/{name}.png", {"train": "valid", "val": "dev"})
    expect_one_line(
        lambda: open_dataset(data, "val"), "has no images for the split 'val', it has the splits dev, valid"
    )
    assert len(open_dataset(data, "valid")) == 2


@pytest.mark.parametrize(
    ("image", "mask", "note"),
    [
        ("images/{name}.png", "masks/{name}.png", "train: images read from images, masks from masks"),
        ("images/{name}.png", "images/{name}_mask.png", "train: images and masks read from images"),
        ("{name}.jpg", "{name}_mask.png", "train: images and masks read from one folder"),
        ("{name}.jpg", "{name}.png", "train: images and masks read from one folder"),
    ],
)
def test_images_without_splits_are_train(tmp_path: Path, image: str, mask: str, note: str) -> None:
    data = build(tmp_path, image, mask)
    assert training_splits(data) == ("train",)
    for name, (_, found) in zip("abc", open_dataset(data, "train"), strict=True):
        np.testing.assert_array_equal(found, mask_of(name))
    assert notes(data) == {"train": note}


@pytest.mark.parametrize("folder", ["", "train/"])
def test_a_folder_for_each_image(tmp_path: Path, folder: str) -> None:
    data = build(tmp_path, folder + "{name}/image.png", folder + "{name}/mask.png")
    assert training_splits(data) == ("train",)
    for name, (_, found) in zip("abc", open_dataset(data, "train"), strict=True):
        np.testing.assert_array_equal(found, mask_of(name))
    assert notes(data) == {"train": f"train: images and masks read from {folder.strip('/') or 'one folder'}"}


def test_a_split_in_a_folder_below_is_not_mixed_with_another(tmp_path: Path) -> None:
    data = build(tmp_path, "inner/{split}/{name}.png", "inner/{split}/{name}_mask.png")
    expect_one_line(lambda: open_dataset(data, "train"), f"is {tmp_path / 'inner'} meant?")


@pytest.mark.parametrize("suffix", [".heic", ".jp2", ".dcm", ".nii.gz"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_unread_formats_is_not_taken_for_missing(tmp_path: Path, suffix: str, split: str) -> None:
    """Training must not hold out a part of train while pictures of val lie there."""
    data = build(tmp_path, "images/{split}/{name}.png", "masks/{split}/{name}.png")
    for file in (tmp_path / "images" / split).iterdir():
        file.rename(file.with_suffix(suffix))
    assert training_splits(data) == ("train", "val")
    first = f"images/{split}/{SPLITS[split][0]}{suffix}"
    for read in (lambda: check_data(data), lambda: require_sound(data, training_splits(data))):
        expect_one_line(read, f"{len(SPLITS[split])} files are in a format that is not read, first {first}")


def test_a_data_set_of_unread_formats_alone(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{name}.png", "masks/{name}.png")
    for file in (tmp_path / "images").iterdir():
        file.rename(file.with_suffix(".nef"))
    expect_one_line(lambda: check_data(data), "3 files are in a format that is not read, first images/a.nef")


def test_val_that_has_masks_alone(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{split}/{name}.png", "masks/{split}/{name}.png")
    (tmp_path / "images/val/c.png").unlink()
    assert training_splits(data) == ("train", "val")
    expect_one_line(lambda: check_data(data), "no images for the split 'val'", "1 masks are there, first masks/val/c.")


def test_the_usual_arrangement_needs_no_line_and_comes_first(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{split}/{name}.png", "masks/{split}/{name}.png")
    for split, kind in itertools.product(SPLITS, ("labels", "annotations")):  # of another task
        write(tmp_path / kind / split / "a.png", IDS * 0)
    assert notes(data) == {}
    np.testing.assert_array_equal(open_dataset(data, "train")[0][1], mask_of("a"))


def test_a_suffix_of_labels_json_tells_masks_from_images(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{split}/{name}.png", "images/{split}/{name}_X.png")
    write_labels(tmp_path, mask_suffix="_X")
    assert len(open_dataset(data, "train")) == 2
    np.testing.assert_array_equal(open_dataset(data, "train")[0][1], mask_of("a"))


def test_an_image_without_a_mask_beside_others_with_one_is_missed(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{split}/{name}.png", "images/{split}/{name}_mask.png")
    write(tmp_path / "images/train/z.png", IMAGE)
    expect_one_line(lambda: open_dataset(data, "train"), "no mask for 1 of 3 images, expected images/train/NAME.png")


@pytest.mark.parametrize(("place", "found"), [("labels/{split}", "labels"), ("{split}/labels", "train/labels")])
@pytest.mark.parametrize("described", [False, True])
def test_labels_of_yolo_are_named_with_the_command(tmp_path: Path, place: str, found: str, described: bool) -> None:
    for split in SPLITS:
        text = tmp_path / place.format(split=split) / "a.txt"
        text.parent.mkdir(parents=True)
        text.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
        write(tmp_path / place.replace("labels", "images").format(split=split) / "a.jpg", IMAGE)
    if described:
        write_labels(tmp_path)
    command = f"it holds YOLO's labels ({found}); import it: ddsm-zoo import-data yolo"
    expect_one_line(lambda: open_dataset(f"folder:{tmp_path}", "train"), command)


@pytest.mark.parametrize(
    ("image", "mask", "place"),
    [
        ("{split}/{name}.png", "{split}_masks/{name}.png", "val_masks/NAME.png"),
        ("{split}/{name}.jpg", "{split}/{name}_mask.png", "val/NAME.png"),
    ],
)
def test_a_split_without_masks_is_no_missing_split(tmp_path: Path, image: str, mask: str, place: str) -> None:
    """Training must not hold out a part of train while images of val lie there."""
    data = build(tmp_path, image, mask)
    (tmp_path / mask.format(split="val", name="c")).unlink()
    write(tmp_path / image.format(split="test", name="t"), IMAGE)
    assert training_splits(data) == ("train", "val")
    expect_one_line(lambda: open_dataset(data, "val"), f"no mask for 1 of 1 images, expected {place}")
    missing = {
        problem.split: problem.severity for problem in check_data(data).problems if problem.kind == "missing-mask"
    }
    assert missing == {"val": "error", "test": "warning"}


def test_folders_without_images_hide_no_others(tmp_path: Path) -> None:
    data = build(tmp_path, "{split}_images/{name}.png", "{split}_masks/{name}.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/boxes.csv").write_text("a")
    assert len(open_dataset(data, "train")) == 2


def test_splits_that_only_the_masks_have_are_not_mixed(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{name}.png", "masks/{split}/{name}.png")
    expect_one_line(
        lambda: open_dataset(data, "train"),
        "3 of its images lie in no split, first images/a.png: move them to images/train",
    )


def test_list_files_of_splits_are_named_as_unread(tmp_path: Path) -> None:
    data = build(tmp_path, "images/{name}.png", "masks/{name}.png")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("a\n")
    (tmp_path / "readme.txt").write_text("")
    assert "train.txt, val.txt not read" in notes(data)["train"]


@pytest.mark.parametrize("place", ["images/{split}", "images"])
@pytest.mark.parametrize("labeled", [True, False])
def test_a_data_set_in_folders_of_an_archive_is_named(tmp_path: Path, place: str, labeled: bool) -> None:
    inner = tmp_path / "archive/My Data"
    build(inner, f"{place}/{{name}}.png", f"{place.replace('images', 'masks')}/{{name}}.png")
    write(tmp_path / "__MACOSX/archive/a.png", IMAGE)
    if labeled:
        write_labels(tmp_path)
    expect_one_line(lambda: open_dataset(f"folder:{tmp_path}", "train"), f"is {inner} meant?")
