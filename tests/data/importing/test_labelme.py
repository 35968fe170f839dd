"""labelme: shapes of all types, labels.txt, images that moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddsm_zoo.data.importing.annotations import ImportOptions
from ddsm_zoo.data.importing.run import import_data
from tests.support.data_sets import expect_one_line, write
from tests.support.exports import EXPECTED, GOLDEN, left_out, mask, names, notes, picture


def write_labelme(root: Path, shapes: list[dict[str, Any]], name: str = "a", **more: Any) -> Path:
    write(root / f"{name}.png", picture())
    content = {"shapes": shapes, "imagePath": f"{name}.png", "imageData": None, "imageHeight": 20, "imageWidth": 30}
    (root / f"{name}.json").write_text(json.dumps({**content, **more}))
    return root


def shape(label: str, kind: str | None, *points: tuple[float, float]) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points}


def test_types_of_shapes(tmp_path: Path) -> None:
    corners = ((2, 3), (12, 3), (12, 10), (2, 10))
    shapes = [
        shape("old", None, *corners),  # as labelme wrote it before there were types
        shape("tilted", "oriented_rectangle", (20, 2), (24, 6), (20, 10), (16, 6)),
        shape("round", "circle", (24, 14), (24, 18)),
        shape("line", "line", (0, 0), (5, 5)),
        shape("line", "linestrip", (0, 0), (5, 5), (7, 7)),
        shape("dot", "point", (1, 1)),
        {**shape("tilted", "mask", (1, 2), (3, 4)), "mask": "no png"},
    ]
    report = import_data("labelme", write_labelme(tmp_path, shapes), tmp_path / "new")
    assert names(tmp_path / "new") == ["background", "old", "round", "tilted"]
    y, x = np.mgrid[:20, :30] + 0.5
    expected = np.zeros((20, 30), int)
    expected[3:10, 2:12] = 1
    found = mask(tmp_path / "new", "a")
    assert np.array_equal(found == 1, expected == 1)
    assert np.array_equal(found == 2, np.hypot(x - 24, y - 14) <= 4)
    assert (found == 3).sum() == pytest.approx(32, abs=8)
    assert left_out(report) == {"lines": 2, "points": 1, "masks that are no PNG image": 1}


def test_labels_txt_gives_order_background_and_ignored(tmp_path: Path) -> None:
    square = ((2, 2), (6, 2), (6, 6), (2, 6))
    moved = tuple((x + 10, y) for x, y in square)
    shapes = [
        shape("weed", "polygon", *square),
        shape("__ignore__", "polygon", *moved),
        shape("wed", "polygon", *moved),
    ]
    source = write_labelme(tmp_path, shapes)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nweed\nfield\n")
    report = import_data("labelme", source, tmp_path / "new")
    assert names(tmp_path / "new") == ["background", "weed", "field"]
    expected = np.zeros((20, 30), int)
    expected[2:6, 2:6], expected[2:6, 12:16] = 1, 255
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)
    assert left_out(report) == {"shapes of classes that labels.txt lacks": 1}


def test_images_that_were_never_annotated_are_left_out(tmp_path: Path) -> None:
    source = write_labelme(tmp_path, [shape("weed", "polygon", (2, 2), (6, 2), (6, 6))])
    write(source / "later.png", picture(1))
    report = import_data("labelme", source, tmp_path / "new")
    assert report.splits == {"train": 1}
    assert left_out(report) == {"images without a JSON file, as not annotated": 1}


def test_an_image_in_a_folder_of_its_own(tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "labelme", tmp_path / "export")
    (source / "photos").mkdir()
    shutil.move(source / "train/a.png", source / "photos/a.png")
    file = source / "train/a.json"
    file.write_text(file.read_text().replace('"a.png"', '"..\\\\photos\\\\a.png"'))
    import_data("labelme", source, tmp_path / "new", ImportOptions(ignore=("weed",)))
    assert np.array_equal(mask(tmp_path / "new", "a") == 255, EXPECTED == 2)


def test_an_image_that_was_renamed_with_its_file(tmp_path: Path) -> None:
    source = write_labelme(tmp_path, [shape("weed", "polygon", (2, 2), (6, 2), (6, 6))], imagePath="before.png")
    assert import_data("labelme", source, tmp_path / "new").splits == {"train": 1}


def test_a_copied_file_belongs_to_the_image_of_its_own_name(tmp_path: Path) -> None:
    """Copies keep the imagePath of their original, which would get two masks."""
    write_labelme(tmp_path, [shape("weed", "polygon", (2, 2), (6, 2), (6, 6))])
    write_labelme(tmp_path, [shape("weed", "polygon", (9, 2), (19, 2), (19, 9))], "b", imagePath="a.png")
    report = import_data("labelme", tmp_path, tmp_path / "new")
    assert "b.json (a.png)" in notes(report)
    assert mask(tmp_path / "new", "a")[3, 4] == 1
    assert mask(tmp_path / "new", "b")[3, 17] == 1


def test_shapes_without_a_class_or_a_size_are_left_out(tmp_path: Path) -> None:
    area = ((2, 2), (6, 2), (6, 6))
    shapes = [shape("0", "polygon", *area), shape("", "polygon", *area), shape("weed", "circle", (1, 2))]
    report = import_data("labelme", write_labelme(tmp_path, shapes), tmp_path / "new")
    assert left_out(report) == {"shapes without a class": 1, "circles without a center and a point on them": 1}
    assert names(tmp_path / "new") == ["background", "0"]


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": [{"points": [[1, 2]]}]},
        {"shapes": [shape("a", "polygon", ("x", "y"))]},  # type: ignore[arg-type]
        {"imagePath": "gone.png", "imageData": "bm8gaW1hZ2U=", "shapes": []},
    ],
)
def test_broken_files(change: dict[str, Any], tmp_path: Path) -> None:
    source = write_labelme(tmp_path, [], "b")
    write_labelme(tmp_path, **{"shapes": [], **change})
    if "imageData" in change:
        (tmp_path / "a.png").unlink()
    expect_one_line(lambda: import_data("labelme", source, tmp_path / "new"), "a.json cannot be read as labelme")
    assert not (tmp_path / "new").exists()
