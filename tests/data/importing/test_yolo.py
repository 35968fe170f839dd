"""YOLO-seg: the ways to say where the images are, and lines that are no polygon."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ddsm_zoo.data.importing.annotations import ImportOptions
from ddsm_zoo.data.importing.run import import_data
from tests.support.data_sets import expect_one_line, write
from tests.support.exports import EXPECTED, left_out, make, mask, names, picture, write_yolo

DRAWN = np.where(EXPECTED == 3, 0, EXPECTED)


def roboflow(root: Path) -> None:
    """Images and labels in a folder for each split, which data.yaml names with one ``..`` too many."""
    for split, old in (("train", "train"), ("valid", "val")):
        shutil.move(root / "images" / old, make(root / split) / "images")
        shutil.move(root / "labels" / old, root / split / "labels") if split == "train" else None
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 3\nnames: ['field', 'weed', 'ring']\n"
    )


def lists(root: Path) -> None:
    (root / "train.txt").write_text("./images/train/a.png\n")
    (root / "val.txt").write_text("data/images/val/b.png\n")
    (root / "data.yaml").write_text("train: train.txt\nval: [val.txt]\nnames: {0: field, 1: weed, 2: ring}\n")


def elsewhere(root: Path) -> None:
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("path: .", "path: /content/datasets/mine"))


def without_yaml(root: Path) -> None:
    """As Label Studio exports it."""
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("field\nweed\nring\n")


@pytest.mark.parametrize("change", [lambda root: None, roboflow, lists, elsewhere, without_yaml])
def test_where_the_images_are(change, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = write_yolo(tmp_path / "export")
    change(source)
    report = import_data("yolo", source, tmp_path / "new")
    assert report.splits == {"train": 1, "val": 1}
    assert report.empty == {"val": 1}
    assert names(tmp_path / "new") == ["background", "field", "weed", "ring"]
    assert np.array_equal(mask(tmp_path / "new", "a"), DRAWN)


def test_lines_without_a_polygon_are_counted(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    with (source / "labels/train/a.txt").open("a") as file:
        file.write(
            "\n\n0 0.5 0.5 0.2 0.2\n9 0.1 0.1 0.2 0.1 0.2 0.2\nfield 0 0\n1 0.1 0.2 0.3\n1 0.1 0.2 0.3 nan 0 0\n"
        )
    report = import_data("yolo", source, tmp_path / "new")
    assert left_out(report) == {
        "boxes without a mask": 1,
        "polygons of unknown classes": 1,
        "lines that are no numbers": 1,
        "polygons with an odd number of coordinates": 1,
        "polygons far outside of the image": 1,
    }
    assert np.array_equal(mask(tmp_path / "new", "a"), DRAWN)


def test_boxes_around_their_center(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    (source / "labels/train/a.txt").write_text("2 0.5 0.25 0.2 0.3")
    import_data("yolo", source, tmp_path / "new", ImportOptions(boxes=True))
    expected = np.zeros((20, 30), int)
    expected[2:8, 12:18] = 3
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)


def test_poses_are_no_polygons(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    with (source / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 3]\n")
    expect_one_line(lambda: import_data("yolo", source, tmp_path / "new"), "keypoints without a mask: 2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/train", "it has no names"),
        ("train: images/train\nnames: []", "it has no names"),
        ("names: [a, no]", "put it in quotes"),
        ("names: [a\n", "cannot be read as YAML"),
        ("names: [a]\ntrain: nowhere", "do not exist below"),
        ("just text", "cannot be read as YOLO's data.yaml"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_broken_files(text: str, words: str, tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    (source / "data.yaml").write_text(text)
    expect_one_line(lambda: import_data("yolo", source, tmp_path / "new"), words)


def test_images_elsewhere_are_for_exports_without_yaml(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    options = ImportOptions(images=tmp_path)
    expect_one_line(lambda: import_data("yolo", source, tmp_path / "new", options), "--images is of no use")
    without_yaml(source)
    shutil.move(source / "images", tmp_path / "photos")
    import_data("yolo", source, tmp_path / "new", ImportOptions(images=tmp_path / "photos"))
    assert np.array_equal(mask(tmp_path / "new", "a"), DRAWN)


def test_two_classes_of_one_name(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    (source / "data.yaml").write_text("train: images/train\nnames: [weed, weed, ring]\n")
    report = import_data("yolo", source, tmp_path / "new")
    assert names(tmp_path / "new") == ["background", "weed", "ring"]
    assert np.array_equal(mask(tmp_path / "new", "a"), DRAWN > 0)
    assert report.findings.notes.lines()[0] == "classes with the name of another, which become one class: 1 (weed)"


def test_an_image_without_labels_shows_nothing(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    write(source / "images/train/c.png", picture(4))
    report = import_data("yolo", source, tmp_path / "new")
    assert report.empty == {"train": 1, "val": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 3 3 20 3 20 15", "coordinates in pixels"),
        ("0.5 0.1 0.1 0.5 0.1 0.5 0.5", "unknown classes"),  # a line without its class
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.93", "odd number of coordinates"),  # a confidence at the end
    ],
)
def test_lines_that_mean_something_else(line: str, words: str, tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    (source / "labels/train/a.txt").write_text(line)
    expect_one_line(lambda: import_data("yolo", source, tmp_path / "new"), words, "a.txt line 1")


def test_another_number_of_classes_than_named_is_said(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    with (source / "data.yaml").open("a") as file:
        file.write("nc: 5\n")
    report = import_data("yolo", source, tmp_path / "new")
    assert report.findings.notes.counts["names in data.yaml where nc says 5"] == 3


def test_classes_keep_the_order_of_their_numbers(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    (source / "data.yaml").write_text(
        'train: images/train\nval: images/val\nnames: {"10": ring, "0": field, "1": weed, "2": stone}\n'
    )
    import_data("yolo", source, tmp_path / "new")
    assert names(tmp_path / "new") == ["background", "field", "weed", "stone", "ring"]
    assert np.array_equal(mask(tmp_path / "new", "a"), DRAWN)


def test_labels_without_an_image_are_counted(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "export")
    file = source / "labels/train/a.txt"
    shutil.copy(file, file.with_name("b.txt"))
    file.with_name("README.txt").write_text("Exported on Monday\n")
    assert left_out(import_data("yolo", source, tmp_path / "new")) == {"files of labels without an image": 1}
