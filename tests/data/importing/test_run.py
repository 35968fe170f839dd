"""Each format becomes a data set with the pixels that its files say, and a report of the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.check.report import check_data
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.importing.annotations import ImportOptions
from ddsm_zoo.data.importing.run import READERS, import_data
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.utils.files import OutputError
from tests.support.data_sets import expect_one_line, write
from tests.support.errors import raises
from tests.support.exports import (
    EXPECTED,
    FIELD,
    GOLDEN,
    NAMES,
    SOURCES,
    WEED,
    left_out,
    mask,
    names,
    notes,
    picture,
    polygon,
    write_coco,
)

RING = EXPECTED == 3
WITHOUT_RING = np.where(RING, 0, EXPECTED)


def test_every_format_is_tried() -> None:
    assert set(SOURCES) == set(READERS)


@pytest.mark.parametrize("format", SOURCES)
def test_pixels_classes_and_splits(format: str, tmp_path: Path) -> None:
    source = SOURCES[format](tmp_path / "export")
    report = import_data(format, source, tmp_path / "new", ImportOptions(background="background", crowd=True))
    ring = format != "yolo"
    found = names(tmp_path / "new")
    assert found == ["background", *(sorted(NAMES) if format in ("labelme", "class-masks") else NAMES)]
    order = np.array([found.index(name) for name in ("background", *NAMES)])
    expected = order[EXPECTED if ring else WITHOUT_RING]
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)
    items = open_dataset(f"folder:{tmp_path / 'new'}", "train")
    assert np.array_equal(items[0][1], expected)
    if format != "voc":  # without a mask there, as it has no annotation
        assert np.unique(mask(tmp_path / "new", "b", "val")).tolist() == [1 if format == "ade20k" else 0]
        assert report.splits == {"train": 1, "val": 1}
    assert not check_data(f"folder:{tmp_path / 'new'}").errors


@pytest.mark.parametrize("format", SOURCES)
def test_the_images_are_the_same_bytes(format: str, tmp_path: Path) -> None:
    source = SOURCES[format](tmp_path / "export")
    import_data(format, source, tmp_path / "new")
    (copied,) = (tmp_path / "new/images/train").iterdir()
    (original,) = (
        path for path in source.rglob(copied.name) if not {"SegmentationClass", "annotations"} & set(path.parts)
    )
    assert copied.read_bytes() == original.read_bytes()


@pytest.mark.parametrize("format", ["coco", "cvat", "labelme"])
def test_boxes_and_points_are_counted(format: str, tmp_path: Path) -> None:
    report = import_data(format, GOLDEN / format, tmp_path / "new")
    expected = {"boxes without a mask": 1} | ({} if format == "coco" else {"points": 1})
    assert left_out(report) == expected


@pytest.mark.parametrize("format", ["coco", "cvat", "labelme"])
def test_boxes_can_be_filled(format: str, tmp_path: Path) -> None:
    report = import_data(format, GOLDEN / format, tmp_path / "new", ImportOptions(boxes=True, crowd=True))
    expected = EXPECTED.copy()
    expected[0:2, 0:3] = 2
    weed = names(tmp_path / "new").index("weed")
    assert np.array_equal(mask(tmp_path / "new", "a") == weed, expected == 2)
    assert "boxes without a mask" not in left_out(report)


def test_crowds_are_ignored_below_objects_and_named(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD), polygon(WEED, 2, iscrowd=1)])
    report = import_data("coco", source, tmp_path / "new")
    expected = np.where(EXPECTED == 2, 255, 0)
    expected[3:10, 2:12] = 1
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)
    assert "iscrowd" in notes(report)
    assert report.ignored == (expected == 255).sum()


@pytest.mark.parametrize(
    ("options", "classes", "ids"),
    [
        (ImportOptions(), ["background", *NAMES], [0, 1, 2]),
        (ImportOptions(background="soil"), ["soil", *NAMES], [0, 1, 2]),
        (ImportOptions(background="ignore"), [*NAMES], [255, 0, 1]),
        (ImportOptions(background="ring"), [*NAMES], [2, 0, 1]),  # everything else is of a class that is drawn too
        (ImportOptions(ignore=("field",)), ["background", "weed", "ring"], [0, 255, 1]),
    ],
)
def test_everything_else_is_a_class_or_ignored(
    options: ImportOptions, classes: list[str], ids: list[int], tmp_path: Path
) -> None:
    source = write_coco(tmp_path, [polygon(FIELD), polygon(WEED, 2)])
    import_data("coco", source, tmp_path / "new", options)
    assert names(tmp_path / "new") == classes
    assert np.array_equal(mask(tmp_path / "new", "a"), np.array(ids)[WITHOUT_RING])


@pytest.mark.parametrize("own", ["background", "Background", "_background_"])
@pytest.mark.parametrize(("wanted", "classes", "ids"), [
    (None, ["field", "background"], [1, 0]),
    ("soil", ["field", "soil"], [1, 0]),
    ("ignore", ["field", "weed"], [255, 0]),
])  # fmt: skip
def test_the_background_of_the_source_is_the_background(
    own: str, wanted: str | None, classes: list[str], ids: list[int], tmp_path: Path
) -> None:
    categories = [{"id": 4, "name": "field"}, {"id": 7, "name": own}, {"id": 9, "name": "weed"}]
    source = write_coco(tmp_path, [polygon(FIELD, 4), polygon(WEED, 7)], categories=categories)
    import_data("coco", source, tmp_path / "new", ImportOptions(background=wanted))
    assert names(tmp_path / "new")[:2] == classes
    assert np.array_equal(mask(tmp_path / "new", "a"), np.array(ids)[np.where(EXPECTED == 1, 1, 0)])


@pytest.mark.parametrize("overlap", ["order", "area"])
def test_overlaps(overlap: str, tmp_path: Path) -> None:
    """The large one comes last in the file."""
    source = write_coco(tmp_path, [polygon([4, 4, 8, 4, 8, 8, 4, 8], 1), polygon(WEED, 2)])
    source = write_coco(tmp_path, [polygon([10, 8, 14, 8, 14, 12, 10, 12], 1), polygon(WEED, 2)])
    report = import_data("coco", source, tmp_path / "new", ImportOptions(overlap=overlap))  # type: ignore[arg-type]
    expected = np.zeros_like(EXPECTED)
    expected[6:14, 8:20] = 2
    if overlap == "area":
        expected[8:12, 10:14] = 1
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)
    assert "overlap" in notes(report)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["upright", "stored"])
def test_images_turned_by_exif(orientation: int, frame: str, tmp_path: Path) -> None:
    """Annotations are of the upright image; of the stored one only if their size says so."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "photo.jpg", exif=exif)
    turned = orientation >= 5
    expected = np.zeros((30, 20) if turned else (20, 30), int)
    if frame == "upright" or not turned:
        expected[2:8, 3:5] = 1
        size = expected.shape
    else:
        stored = np.zeros((20, 30), int)
        stored[2:8, 3:5] = 1
        # the turns of EXIF's 5 to 8, by the names of the standard
        expected = {5: stored.T, 6: np.rot90(stored, -1), 7: np.rot90(stored, 2).T, 8: np.rot90(stored)}[orientation]
        size = stored.shape
    source = write_coco(tmp_path / "export", [polygon([3, 2, 5, 2, 5, 8, 3, 8])], size=(size[0], size[1]))
    shutil.move(tmp_path / "photo.jpg", source / "photo.jpg")
    file = source / "annotations.json"
    file.write_text(file.read_text().replace("a.png", "photo.jpg"))
    report = import_data("coco", source, tmp_path / "new")
    assert np.array_equal(mask(tmp_path / "new", "photo"), expected)
    image, ids = open_dataset(f"folder:{tmp_path / 'new'}", "train")[0]
    assert image.shape[1:] == ids.shape
    assert ("EXIF" in notes(report)) == (orientation > 1)


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD), polygon(FIELD, image_id=2)], images=("a.png", "b.png"))
    write(source / "a.png", picture(0, (10, 15)))
    report = import_data("coco", source, tmp_path / "new")
    assert left_out(report) == {"images of another size than their annotations": 1}
    assert [path.name for path in (tmp_path / "new/images/train").iterdir()] == ["b.png"]


def test_equal_names_in_different_folders(tmp_path: Path) -> None:
    images = ("one/a.png", "two/a.png", "two/b.png", "two/B.jpg")
    source = write_coco(tmp_path, [polygon(FIELD), polygon(WEED, 2, image_id=2)], images=images)
    report = import_data("coco", source, tmp_path / "new")
    made = sorted(path.name for path in (tmp_path / "new/images/train").iterdir())
    assert made == ["one_a.png", "two_B_jpg.jpg", "two_a.png", "two_b.png"]
    assert mask(tmp_path / "new", "one_a").max() == 1
    assert mask(tmp_path / "new", "two_a").max() == 2
    assert "images renamed" in notes(report)
    assert not check_data(f"folder:{tmp_path / 'new'}").errors


def test_missing_and_damaged_images_and_strangers(tmp_path: Path) -> None:
    images = ("a.png", "b.png", "c.png")
    source = write_coco(tmp_path / "export", [polygon(FIELD)], images=images)
    (source / "b.png").unlink()
    (source / "c.png").write_bytes(b"no image")
    write(source / "extra.png", picture())
    report = import_data("coco", source, tmp_path / "new")
    assert left_out(report) == {
        "images that are missing": 1,
        "image files that no annotation file lists": 1,
        "images or masks that cannot be read": 1,
    }
    assert [path.name for path in (tmp_path / "new").glob("*/*/*")] == ["a.png", "a.png"]


def test_without_splits_all_is_for_training(tmp_path: Path) -> None:
    report = import_data("coco", write_coco(tmp_path, [polygon(FIELD)]), tmp_path / "new")
    assert report.splits == {"train": 1}
    assert "holdout" in notes(report)


def test_images_without_annotations_are_background(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD)], images=("a.png", "b.png"))
    report = import_data("coco", source, tmp_path / "new")
    assert report.empty == {"train": 1}
    assert not mask(tmp_path / "new", "b").any()


def test_a_source_without_a_training_split_is_named(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD)], file="my_test_export.json")
    report = import_data("coco", source, tmp_path / "new")
    assert report.splits == {"test": 1}
    assert "no image is in train" in notes(report)


def test_links(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD)])
    import_data("coco", source, tmp_path / "new", ImportOptions(link=True))
    made = tmp_path / "new/images/train/a.png"
    assert made.is_symlink()
    assert made.resolve() == (source / "a.png").resolve()


def test_images_elsewhere(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "export", [polygon(FIELD)])
    (tmp_path / "photos").mkdir()
    shutil.move(source / "a.png", tmp_path / "photos/a.png")
    expect_one_line(lambda: import_data("coco", source, tmp_path / "new"), "no usable image", "a.png")
    import_data("coco", source, tmp_path / "new", ImportOptions(images=tmp_path / "photos"))
    assert mask(tmp_path / "new", "a").max() == 1


def test_colors_are_kept_and_differ(tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "cvat", tmp_path / "export")
    for file in source.glob("*.xml"):
        text = file.read_text()
        for name, color in {"field": "#102030", "weed": "#102030", "ring": "#ff0080"}.items():
            text = text.replace(f"<name>{name}</name>", f"<name>{name}</name><color>{color}</color>")
        file.write_text(text)
    import_data("cvat", source, tmp_path / "new")
    palette = json.loads((tmp_path / "new/labels.json").read_text())["palette"]
    assert palette[:2] == [[0, 0, 0], [16, 32, 48]]
    assert palette[3] == [255, 0, 128]
    assert len({tuple(color) for color in palette}) == 4


def test_more_classes_than_a_byte_has(tmp_path: Path) -> None:
    categories = [{"id": id, "name": f"class {id}"} for id in range(300)]
    source = write_coco(tmp_path, [polygon(FIELD, 299), polygon(WEED, 3, iscrowd=1)], categories=categories)
    import_data("coco", source, tmp_path / "new")
    found = mask(tmp_path / "new", "a")
    assert set(np.unique(found).tolist()) == {0, 300, 65535}
    assert json.loads((tmp_path / "new/labels.json").read_text())["ignore_index"] == 65535


@pytest.mark.parametrize("format", READERS)
def test_folders_of_another_format(format: str, tmp_path: Path) -> None:
    write(tmp_path / "source/a.png", picture())
    (tmp_path / "source/b.json").write_text('{"some": "thing"}')
    (tmp_path / "source/c.xml").write_text("<other/>")
    expect_one_line(lambda: import_data(format, tmp_path / "source", tmp_path / "new"), "source has no ", "expected"
                    if format != "yolo" else "data.yaml")  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("source", "words"), [("nowhere", "does not exist"), ("export.zip", "unpack it"), ("boxes", "boxes without a mask")]
)
def test_what_cannot_be_imported(source: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "export.zip").write_bytes(b"PK")
    write_coco(tmp_path / "boxes", [{"category_id": 1, "bbox": [1, 2, 3, 4]}])
    expect_one_line(lambda: import_data("coco", tmp_path / source, tmp_path / "new"), source, words)
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "export", [polygon(FIELD)])
    (tmp_path / "new").mkdir()
    expect_one_line(lambda: import_data("coco", source, tmp_path / "new"), "exists already", kind=OutputError)
    assert list((tmp_path / "new").iterdir()) == []


def test_unknown_formats_and_ignored_classes(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "export", [polygon(FIELD)])
    expect_one_line(lambda: import_data("kitti", source, tmp_path / "new"), "'kitti'", "coco")
    with raises(DatasetError, kind="import", name="ignore", got=["sky"]):
        import_data("coco", source, tmp_path / "new", ImportOptions(ignore=("sky",)))


def test_the_wrong_format_is_told_the_right_one(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "export", [polygon(FIELD)])
    expect_one_line(
        lambda: import_data("yolo", source, tmp_path / "new"), "has no data.yaml", "import-data coco", str(source)
    )


def test_names_in_other_capitals(tmp_path: Path) -> None:
    """The image was renamed, and two classes differ in capitals alone, which is said."""
    categories = [{"id": 1, "name": "Field"}, {"id": 2, "name": " field "}]
    source = write_coco(tmp_path / "export", [polygon(FIELD)], categories=categories)
    shutil.move(source / "a.png", source / "A.PNG")
    report = import_data("coco", source, tmp_path / "new")
    assert names(tmp_path / "new") == ["background", "Field", "field"]
    assert "differ in capitals alone: 2 (Field, field)" in notes(report)
    assert report.splits == {"train": 1}


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "export", [polygon(FIELD)], categories=[{"id": 1, "name": " "}])
    expect_one_line(lambda: import_data("coco", source, tmp_path / "new"), "empty name")


def test_one_class_and_nothing_else_is_refused(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "export", [polygon(FIELD)], categories=[{"id": 1, "name": "field"}])
    options = ImportOptions(background="ignore")
    expect_one_line(lambda: import_data("coco", source, tmp_path / "new", options), "field is the only class")
