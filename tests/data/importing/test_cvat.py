"""CVAT for images: layers, masks, subsets, and shapes without an area."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddsm_zoo.data.importing.annotations import ImportOptions
from ddsm_zoo.data.importing.run import import_data
from tests.support.data_sets import expect_one_line, write
from tests.support.exports import left_out, mask, names, picture

LABELS = "".join(f"<label><name>{name}</name></label>" for name in ("field", "weed"))


def write_cvat(root: Path, shapes: str, *, name: str = "a.png", more: str = "", kind: str = "task") -> Path:
    """As the server exports it: annotations.xml beside images/."""
    write(root / "images" / name, picture())
    (root / "annotations.xml").write_text(
        f"<annotations><version>1.1</version><meta><{kind}><labels>{LABELS}</labels></{kind}></meta>"
        f'<image id="0" name="{name}" width="30" height="20" {more}>{shapes}</image></annotations>'
    )
    return root


def polygon(label: str, left: int, right: int, z: int) -> str:
    points = f"{left},2;{right},2;{right},8;{left},8"
    return f'<polygon label="{label}" points="{points}" z_order="{z}"/>'


@pytest.mark.parametrize("kind", ["task", "project", "job"])
def test_layers_before_the_order_of_the_file(kind: str, tmp_path: Path) -> None:
    shapes = polygon("weed", 2, 10, 1) + polygon("field", 6, 14, 0) + polygon("field", 8, 10, 1)
    import_data("cvat", write_cvat(tmp_path, shapes, kind=kind), tmp_path / "new")
    expected = np.zeros((20, 30), int)
    expected[2:8, 6:14], expected[2:8, 2:10], expected[2:8, 8:10] = 1, 2, 1
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)


def test_masks_in_their_box(tmp_path: Path) -> None:
    """Run lengths go along the rows of the box, and begin outside."""
    shapes = '<mask label="weed" rle="1, 3, 2, 2" left="20" top="5" width="4" height="2"/>'
    import_data("cvat", write_cvat(tmp_path, shapes), tmp_path / "new")
    expected = np.zeros((20, 30), int)
    expected[5, 21:24] = expected[6, 22:24] = 2
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)


def test_shapes_without_an_area_are_counted(tmp_path: Path) -> None:
    shapes = polygon("weed", 2, 10, 0) + polygon("tree", 2, 10, 0)
    shapes += '<box label="weed" xtl="1" ytl="1" xbr="3" ybr="4"/><points label="weed" points="1,1;2,2"/>'
    shapes += '<polyline label="weed" points="1,1;2,2;3,3"/><tag label="weed"/><cuboid label="weed"/>'
    shapes += '<skeleton label="weed"><points label="1" points="1,1"/></skeleton>'
    shapes += '<mask label="weed" rle="1, 3" left="20" top="5" width="4" height="2"/>'
    report = import_data("cvat", write_cvat(tmp_path, shapes), tmp_path / "new")
    assert left_out(report) == {
        "shapes of unknown classes": 1,
        "boxes without a mask": 1,
        "points": 1,
        "lines": 1,
        "tags": 1,
        "cuboids": 1,
        "skeletons": 1,
        "run lengths that do not add up to their size": 1,
    }


def test_ellipses_and_turned_boxes(tmp_path: Path) -> None:
    shapes = '<ellipse label="field" cx="8" cy="8" rx="5" ry="3"/>'
    shapes += '<box label="weed" xtl="18" ytl="9" xbr="26" ybr="11" rotation="90"/>'
    import_data("cvat", write_cvat(tmp_path, shapes), tmp_path / "new", ImportOptions(boxes=True))
    y, x = np.mgrid[:20, :30] + 0.5
    expected = (((x - 8) / 5) ** 2 + ((y - 8) / 3) ** 2 <= 1).astype(int)
    expected[6:14, 21:23] = 2
    assert np.array_equal(mask(tmp_path / "new", "a"), expected)


@pytest.mark.parametrize(("name", "more"), [("a.png", 'subset="Validation"'), ("val/a.png", "")])
def test_subsets(name: str, more: str, tmp_path: Path) -> None:
    source = write_cvat(tmp_path, polygon("weed", 2, 10, 0), name=name, more=more)
    assert import_data("cvat", source, tmp_path / "new").splits == {"val": 1}
    assert names(tmp_path / "new") == ["background", "field", "weed"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<annotations><track id='0'/></annotations>", "CVAT for video"),
        ("<annotations><image name='a.png'/></annotations>", "cannot be read as CVAT for images"),
        ("<annotations>", "cannot be read as XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "cannot be read as XML"),
    ],
)
def test_broken_files(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(content)
    expect_one_line(lambda: import_data("cvat", tmp_path, tmp_path / "new"), "annotations.xml", words)
