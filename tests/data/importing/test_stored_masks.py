"""Formats that store masks: VOC with its void border, labelmap.txt and class_names.txt; Roboflow; ADE20K."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.importing.annotations import ImportOptions
from ddsm_zoo.data.importing.run import import_data
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.labels import voc_color
from tests.support.data_sets import expect_one_line, write
from tests.support.errors import raises
from tests.support.exports import (
    EXPECTED,
    GOLDEN,
    NAMES,
    left_out,
    make,
    mask,
    names,
    notes,
    picture,
    write_ade20k,
    write_roboflow,
)

VOC_COLORS = [channel for index in range(256) for channel in voc_color(index)]


def write_voc(root: Path, *, lists: dict[str, str] | None = None) -> Path:
    """VOC2012: palette images with 0, aeroplane, bicycle, bird, and 255 around each object."""
    for name in ("a", "b"):
        Image.fromarray(picture(ord(name))).save(make(root / "JPEGImages") / f"{name}.jpg")
        ids = EXPECTED.astype(np.uint8)
        ids[12, :] = 255
        stored = Image.fromarray(ids)
        stored.putpalette(VOC_COLORS)
        stored.save(make(root / "SegmentationClass") / f"{name}.png")
    for split, text in (lists if lists is not None else {"train": "a\n", "val": "b\n", "trainval": "a\nb\n"}).items():
        (make(root / "ImageSets/Segmentation") / f"{split}.txt").write_text(text)
    return root


def test_pascal_voc(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit/VOC2012")
    Image.fromarray(picture(9)).save(tmp_path / "VOCdevkit/VOC2012/JPEGImages/detection.jpg")
    report = import_data("voc", tmp_path, tmp_path / "new")
    assert names(tmp_path / "new")[:4] == ["background", "aeroplane", "bicycle", "bird"]
    assert len(names(tmp_path / "new")) == 21
    assert report.splits == {"train": 1, "val": 1}
    expected = EXPECTED.copy()
    expected[12, :] = 255
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)
    assert report.ignored == 60
    assert left_out(report) == {"images that no list names, or without a mask": 1}
    assert "the 21 of Pascal VOC" in notes(report)
    assert tuple(report.labels.palette[1]) == (128, 0, 0)


def test_the_background_of_voc_can_be_ignored(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    import_data("voc", tmp_path / "voc", tmp_path / "new", ImportOptions(background="ignore"))
    assert names(tmp_path / "new")[0] == "aeroplane"
    expected = np.where(EXPECTED == 0, 255, EXPECTED - 1)
    expected[12, :] = 255
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)


def test_lists_of_main_stand_in_for_those_of_segmentation(tmp_path: Path) -> None:
    source = write_voc(tmp_path / "voc")
    shutil.move(source / "ImageSets/Segmentation", source / "ImageSets/Main")
    (source / "ImageSets/Main/cat_train.txt").write_text("a  1\nb -1\n")
    assert import_data("voc", source, tmp_path / "new").splits == {"train": 1, "val": 1}


def test_boxes_alone_are_named(tmp_path: Path) -> None:
    write(tmp_path / "JPEGImages/a.png", picture())
    (make(tmp_path / "Annotations") / "a.xml").write_text("<annotation/>")
    expect_one_line(lambda: import_data("voc", tmp_path, tmp_path / "new"), "no SegmentationClass", "boxes alone")


@pytest.mark.parametrize("lists", [{}, {"trainval": "a\nb\n"}, {"default": "a\nb\n"}])
def test_without_lists_of_splits_all_is_for_training(lists: dict[str, str], tmp_path: Path) -> None:
    source = write_voc(tmp_path / "voc", lists=lists)
    report = import_data("voc", source, tmp_path / "new")
    assert report.splits == {"train": 2}
    assert "holdout" in notes(report)


def test_lists_of_files_and_names_in_two_lists(tmp_path: Path) -> None:
    lists = {"train": "JPEGImages/a.jpg SegmentationClass/a.png\n", "val": "b.png\r\na\r\n"}
    report = import_data("voc", write_voc(tmp_path / "voc", lists=lists), tmp_path / "new")
    assert report.splits == {"train": 1, "val": 1}
    assert "images in several lists, taken for the first: 1 (a in train)" in notes(report)


@pytest.mark.parametrize(
    ("lines", "words"),
    [("background;0,0,0\nx;1,2,3", "has no colon"), ("a:0,0,0::\nb:0,0,0::", "stands for two classes")],
)
def test_broken_labelmap(lines: str, words: str, tmp_path: Path) -> None:
    source = write_voc(tmp_path / "voc")
    (source / "labelmap.txt").write_text(lines)
    expect_one_line(lambda: import_data("voc", source, tmp_path / "new"), "labelmap.txt", words)


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_colors_of_labelmap(mode: str, tmp_path: Path) -> None:
    """CVAT writes RGB; a palette in another order means its colors, and plain ids the lines of the file."""
    source = shutil.copytree(GOLDEN / "voc", tmp_path / "voc")
    colors = [(0, 0, 0), (10, 200, 30), (250, 50, 183), (1, 2, 3)]
    lines = [
        f"{name}:{','.join(map(str, color))}::" for name, color in zip(("background", *NAMES), colors, strict=True)
    ]
    (source / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    ids = EXPECTED.astype(np.uint8)
    if mode == "RGB":
        stored = Image.fromarray(np.array(colors, np.uint8)[ids])
    elif mode == "P":
        stored = Image.fromarray(3 - ids)
        stored.putpalette([channel for color in reversed(colors) for channel in color])
    else:
        stored = Image.fromarray(ids)
    stored.save(source / "SegmentationClass/a.png")
    report = import_data("voc", source, tmp_path / "new")
    assert np.array_equal(mask(tmp_path / "new", "a"), EXPECTED)
    assert report.labels.palette == tuple(colors)


def test_labelmes_own_export_to_voc(tmp_path: Path) -> None:
    """class_names.txt, and masks in SegmentationClassPNG beside arrays."""
    source = write_voc(tmp_path / "voc", lists={})
    shutil.move(source / "SegmentationClass", source / "SegmentationClassPNG")
    np.save(make(source / "SegmentationClass") / "a.npy", EXPECTED)
    (source / "class_names.txt").write_text("_background_\nfield\nweed\nring\n")
    import_data("voc", source, tmp_path / "new")
    assert names(tmp_path / "new") == ["background", *NAMES]
    expected = EXPECTED.copy()
    expected[12, :] = 255
    assert np.array_equal(mask(tmp_path / "new", "b"), expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_values_of_no_class_are_ignored_and_named(mode: str, tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "voc", tmp_path / "voc")
    stored = EXPECTED.astype(np.uint8)
    stored[0, :5] = 77
    pixels = stored if mode == "L" else np.array([voc_color(id) for id in range(256)], np.uint8)[stored]
    write(source / "SegmentationClass/a.png", pixels)
    report = import_data("voc", source, tmp_path / "new")
    expected = EXPECTED.copy()
    expected[0, :5] = 255
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)
    shown = "77" if mode == "L" else ",".join(map(str, voc_color(77)))
    assert f"values of unknown classes, which are ignored: 1 (a.png ({shown}))" in notes(report)


@pytest.mark.parametrize(("name", "words"), [("a.jpg", "compressed with losses"), ("a.png", "cannot be read")])
def test_damaged_masks(name: str, words: str, tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "voc", tmp_path / "voc")
    (source / "SegmentationClass/a.png").unlink()
    if name == "a.jpg":
        Image.fromarray(EXPECTED.astype(np.uint8) * 80).save(source / "SegmentationClass/a.jpg")
    else:
        (source / "SegmentationClass/a.png").write_bytes(b"\x89PNG")
    expect_one_line(lambda: import_data("voc", source, tmp_path / "new"), words)


def test_roboflow_leaves_out_images_without_a_mask(tmp_path: Path) -> None:
    source = write_roboflow(tmp_path / "export")
    Image.fromarray(picture(3)).save(source / "train/more.jpg")
    write(source / "train/gone_mask.png", EXPECTED.astype(np.uint8))
    report = import_data("roboflow", source, tmp_path / "new")
    assert left_out(report) == {"images without a mask": 1, "images that are missing": 1}
    assert report.splits == {"train": 1, "val": 1}


def test_roboflow_table_without_a_head(tmp_path: Path) -> None:
    source = write_roboflow(tmp_path / "export")
    for table in source.rglob("_classes.csv"):
        table.write_text(table.read_text().partition("\n")[2])
    report = import_data("roboflow", source, tmp_path / "new")
    assert np.array_equal(mask(tmp_path / "new", "a"), EXPECTED)
    assert not report.ignored


@pytest.mark.parametrize("text", ["", "Pixel Value, Class\n", "Pixel Value, Class\n1, field\n1, weed\n"])
def test_roboflow_without_any_class_is_refused(tmp_path: Path, text: str) -> None:
    source = write_roboflow(tmp_path / "export")
    for table in source.rglob("_classes.csv"):
        table.write_text(text)
    with raises(DatasetError, kind="import", path="_classes.csv"):
        import_data("roboflow", source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_roboflow_masks_in_three_equal_channels(tmp_path: Path) -> None:
    source = write_roboflow(tmp_path / "export")
    write(source / "train/a_mask.png", np.repeat(EXPECTED.astype(np.uint8)[..., None], 3, 2))
    import_data("roboflow", source, tmp_path / "new", ImportOptions(background="ignore"))
    assert names(tmp_path / "new") == list(NAMES)
    assert np.array_equal(mask(tmp_path / "new", "a"), np.where(EXPECTED == 0, 255, EXPECTED - 1))


def test_ade20k_ignores_what_is_no_object(tmp_path: Path) -> None:
    source = write_ade20k(tmp_path / "ADEChallengeData2016")
    report = import_data("ade20k", tmp_path, tmp_path / "new")
    assert source.exists()
    assert names(tmp_path / "new") == list(NAMES)
    assert np.array_equal(mask(tmp_path / "new", "a"), np.where(EXPECTED == 0, 255, EXPECTED - 1))
    assert report.splits == {"train": 1, "val": 1}
    assert "no object are ignored" in notes(report)


def test_ade20k_classes_with_the_same_first_name(tmp_path: Path) -> None:
    source = write_ade20k(tmp_path / "export")
    file = source / "objectInfo150.txt"
    file.write_text(file.read_text().replace("weed, weed", "field, weed"))
    import_data("ade20k", source, tmp_path / "new")
    assert names(tmp_path / "new") == ["field, field of land", "field, weed of land", "ring"]
