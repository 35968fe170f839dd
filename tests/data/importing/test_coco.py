"""COCO: where its files and images may be, and the annotations that it may hold."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO

from ddsm_zoo.data.importing.run import import_data
from tests.support.data_sets import expect_one_line, write
from tests.support.exports import (
    EXPECTED,
    FIELD,
    NAMES,
    SIZE,
    WEED,
    left_out,
    mask,
    names,
    notes,
    picture,
    polygon,
    write_coco,
)

CATEGORIES = [{"id": id, "name": name} for id, name in enumerate(NAMES, 1)]


def test_masks_are_those_of_cocos_own_tools(tmp_path: Path) -> None:
    """Polygons with slanted edges, and compressed run lengths."""
    random = np.random.default_rng(3)
    annotations = [polygon((random.random((5, 2)) * (60, 40)).ravel().tolist(), id) for id in (1, 2, 3)]
    blob = np.kron(random.random((8, 12)) < 0.2, np.ones((5, 5))).astype(np.uint8)
    packed = coco.encode(np.asfortranarray(blob))
    packed["counts"] = packed["counts"].decode()
    annotations.append({"category_id": 1, "segmentation": packed})
    source = write_coco(tmp_path, annotations, size=(40, 60))
    tools = COCO(str(source / "annotations.json"))
    expected = np.zeros((40, 60), int)
    for annotation in tools.loadAnns(tools.getAnnIds()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of numpy 2, for all that pycocotools decodes
            expected[tools.annToMask(annotation) > 0] = annotation["category_id"]
    import_data("coco", source, tmp_path / "new")
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)


def test_several_polygons_are_one_area(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [{"category_id": 1, "segmentation": [FIELD, WEED]}])
    import_data("coco", source, tmp_path / "new")
    assert np.array_equal(mask(tmp_path / "new", "a"), np.isin(EXPECTED, [1, 2]))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("annotations/instances_train2017.json", "train2017"), ("annotations/instances_val2017.json", "val2017")),
        (("annotations/instances_train.json", "images/train"), ("annotations/instances_val.json", "images/val")),
        (("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")),
        (("train.json", "train"), ("validation.json", "val")),
    ],
    ids=lambda part: part[0],
)
def test_splits(train: tuple[str, str], val: tuple[str, str], tmp_path: Path) -> None:
    """Both splits have an image of the same name."""
    for number, (file, folder) in enumerate((train, val)):
        write_coco(tmp_path, [polygon((FIELD, WEED)[number], number + 1)], images=(), file=file)
        content = json.loads((tmp_path / file).read_text())
        content["images"] = [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}]
        (tmp_path / file).write_text(json.dumps(content))
        write(tmp_path / folder / "a.png", picture(number))
    report = import_data("coco", tmp_path, tmp_path / "new")
    assert report.splits == {"train": 1, "val": 1}
    assert (mask(tmp_path / "new", "a").max(), mask(tmp_path / "new", "a", "val").max()) == (1, 2)
    for number, split in enumerate(("train", "val")):
        assert (tmp_path / f"new/images/{split}/a.png").read_bytes() == (
            tmp_path / (train, val)[number][1] / "a.png"
        ).read_bytes()


def test_other_files_of_cocos_release_are_left_out(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD)], file="annotations/instances_train2017.json")
    write_coco(tmp_path, [polygon(WEED, 2)], file="annotations/person_keypoints_train2017.json")
    (tmp_path / "annotations/image_info_test2017.json").write_text('{"images": [], "categories": []}')
    report = import_data("coco", source, tmp_path / "new")
    assert mask(tmp_path / "new", "a").max() == 1
    assert left_out(report) == {
        "JSON files without annotations and categories": 1,
        "JSON files beside those named instances_...": 1,
    }


def test_one_file_as_the_source(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD)])
    (tmp_path / "other.json").write_text("{")
    import_data("coco", source / "annotations.json", tmp_path / "new")
    assert mask(tmp_path / "new", "a").max() == 1


@pytest.mark.parametrize("name", ["..\\..\\upload\\1\\a.png", "/data/upload/1/a.png", "images/a.png", "./a.png"])
def test_paths_of_other_machines(name: str, tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD)], images=("images/a.png",))
    file = tmp_path / "annotations.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))
    import_data("coco", source, tmp_path / "new")
    assert mask(tmp_path / "new", "a").max() == 1


def test_annotations_without_an_area_are_counted(tmp_path: Path) -> None:
    wrong = coco.encode(np.asfortranarray(np.ones((4, 4), np.uint8)))
    wrong["counts"] = wrong["counts"].decode()
    annotations = [
        polygon(FIELD),
        {"category_id": 1, "bbox": [1, 1, 4, 4], "segmentation": []},
        {"category_id": 1, "bbox": [1, 1, 4, 4], "keypoints": [1, 1, 2]},
        {"category_id": 1},
        polygon([1, 1, 5, 5], 1),
        polygon(FIELD, 99),
        polygon(FIELD, 1, image_id=77),
        polygon([40, 40, 50, 40, 50, 50], 1),
        {"category_id": 2, "segmentation": wrong},
        {"category_id": 2, "segmentation": {"size": SIZE, "counts": [5, 4]}},
    ]
    report = import_data("coco", write_coco(tmp_path, annotations), tmp_path / "new")
    assert left_out(report) == {
        "boxes without a mask": 1,
        "keypoints without a mask": 1,
        "annotations without an area": 1,
        "polygons with fewer than three points": 1,
        "annotations of unknown classes": 1,
        "annotations of images that are not listed": 1,
        "areas that cover no pixel": 1,
        "areas of another size than their image": 1,
        "run lengths that do not add up to their size": 1,
    }
    assert mask(tmp_path / "new", "a")[3:10, 2:12].all()
    assert mask(tmp_path / "new", "a").sum() == 70


def test_ids_with_gaps_and_categories_with_one_name(tmp_path: Path) -> None:
    categories = [{"id": 90, "name": "weed"}, {"id": 7, "name": "field"}, {"id": 91, "name": "field"}]
    source = write_coco(tmp_path, [polygon(FIELD, 91), polygon(WEED, 90)], categories=categories)
    report = import_data("coco", source, tmp_path / "new")
    assert names(tmp_path / "new") == ["background", "field", "weed"]
    assert np.array_equal(mask(tmp_path / "new", "a"), np.where(EXPECTED == 3, 0, EXPECTED))
    assert "become one class: 1 (field" in notes(report)


def test_the_parent_category_of_roboflow_is_no_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "land", "supercategory": "none"},
        {"id": 1, "name": "field", "supercategory": "land"},
        {"id": 2, "name": "weed", "supercategory": "land"},
    ]
    source = write_coco(tmp_path, [polygon(FIELD, 1)], categories=categories)
    report = import_data("coco", source, tmp_path / "new")
    assert names(tmp_path / "new") == ["background", "field", "weed"]
    assert "land" in notes(report)


def test_an_image_that_is_listed_twice(tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD), polygon(WEED, 2, image_id=2)], images=("a.png", "a.png"))
    report = import_data("coco", source, tmp_path / "new")
    assert np.array_equal(mask(tmp_path / "new", "a"), np.where(EXPECTED == 3, 0, EXPECTED))
    assert "listed twice" in notes(report)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    source = write_coco(tmp_path, [polygon(FIELD)])
    file = tmp_path / "annotations.json"
    file.write_bytes(file.read_text().replace("field", "Äcker").encode(encoding))
    import_data("coco", source, tmp_path / "new")
    assert json.loads((tmp_path / "new/labels.json").read_bytes())["names"][1] == "Äcker"


@pytest.mark.parametrize(
    "content",
    [
        '{"images": [{"id": 1}], "annotations": [], "categories": []}',
        '{"images": [7], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [{}], "categories": [{"id": 1}]}',
        '{"images": [], "annotations": [',
        "[" * 100_000,
    ],
)
def test_broken_files(content: str, tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(content)
    expect_one_line(lambda: import_data("coco", tmp_path, tmp_path / "new"), "some.json cannot be read as")


@pytest.mark.parametrize("field", ["categories", "images"])
def test_an_id_of_two_is_refused(tmp_path: Path, field: str) -> None:
    """The annotation would get the later class, or be drawn in both images."""
    source = write_coco(tmp_path / "export", [polygon(FIELD)], images=("a.png", "b.png"))
    file = source / "annotations.json"
    content = json.loads(file.read_text())
    content[field][1]["id"] = content[field][0]["id"]
    file.write_text(json.dumps(content))
    expect_one_line(lambda: import_data("coco", source, tmp_path / "new"), f"the id 1 for two {field}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("more", "said"), [([], True), ([polygon([2, 3, 12, 3, 12, 10])], False)])
def test_boxes_that_are_stored_as_polygons_are_said(more: list[dict[str, Any]], said: bool, tmp_path: Path) -> None:
    report = import_data("coco", write_coco(tmp_path, [polygon(FIELD), polygon(WEED), *more]), tmp_path / "new")
    assert ("all areas are rectangles" in notes(report)) == said


def test_ids_in_quotes_are_those_without(tmp_path: Path) -> None:
    annotations = [polygon(FIELD, image_id="1"), {**polygon(WEED), "category_id": "2"}]
    import_data("coco", write_coco(tmp_path, annotations), tmp_path / "new")
    assert set(np.unique(mask(tmp_path / "new", "a"))) == {0, 1, 2}


def test_fractions_instead_of_pixels_are_no_area(tmp_path: Path) -> None:
    fractions = (np.reshape(FIELD, (-1, 2)) / SIZE[::-1]).ravel().tolist()
    report = import_data("coco", write_coco(tmp_path, [polygon(FIELD), polygon(fractions, 2)]), tmp_path / "new")
    assert left_out(report) == {"coordinates from 0 to 1, expected pixels": 1}
    assert set(np.unique(mask(tmp_path / "new", "a"))) == {0, 1}


def test_panoptic_annotations_are_named(tmp_path: Path) -> None:
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 7, "category_id": 1}]}
    source = write_coco(tmp_path / "export", [annotation])
    expect_one_line(lambda: import_data("coco", source, tmp_path / "new"), "panoptic annotations", "a.png")


def test_areas_that_all_fail_are_no_background(tmp_path: Path) -> None:
    """Run lengths of height and width exchanged: an import of nothing but background would teach that."""
    counts = {"counts": [100, 20, SIZE[0] * SIZE[1] - 120], "size": [*SIZE[::-1]]}
    source = write_coco(tmp_path / "export", [{"category_id": 1, "segmentation": counts}])
    expect_one_line(lambda: import_data("coco", source, tmp_path / "new"), "areas of another size than their image")
