"""``ddsm-zoo import-data``: what it prints, its figures, and its refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.command_line import run_command
from tests.support.exports import FIELD, GOLDEN, WEED, names, polygon, write_coco


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def test_lines() -> None:
    lines = run_command("import-data", "cvat", GOLDEN / "cvat", "new").stdout.splitlines()
    rows = [line.replace("│", " ").split() for line in lines]
    assert ["field", "4.50", "1"] in rows  # 54 of 1200 pixels
    assert lines[-6:] == [
        "train: 1 image",
        "val: 1 image, 1 of them without annotations: all background",
        "note: images where areas of several classes overlap, the later one on top: 1 (a.png)",
        "left out: boxes without a mask (--boxes fill draws them as filled rectangles): 1 (weed in a.png)",
        "left out: points: 1 (field in a.png)",
        "next: ddsm-zoo check-data folder:new",
    ]


@pytest.mark.parametrize("json_file", [None, "figures.json"])
def test_each_line_is_printed_once(json_file: str | None) -> None:
    options = () if json_file is None else ("--json", json_file)
    result = run_command("import-data", "cvat", GOLDEN / "cvat", "new", *options)
    said = [line for line in (result.stdout + result.stderr).splitlines() if line]
    assert len(said) == len(set(said))
    assert [line for line in said if line.startswith("train: ")] == ["train: 1 image"]


def test_the_next_command_works() -> None:
    words = run_command("import-data", "cvat", GOLDEN / "cvat", "new").stdout.splitlines()[-1].split()
    assert words[2:] == ["check-data", "folder:new"]
    verdict = run_command(*words[2:]).stdout.splitlines()[-1]
    assert verdict == "folder:new has 1 warning"  # no error


def test_figures() -> None:
    result = run_command("import-data", "coco", GOLDEN / "coco", "new", "--boxes", "fill", "--json", "-")
    figures = json.loads(result.stdout)
    assert figures["data"] == "folder:new"
    assert figures["splits"]["val"] == {"images": 1, "without_annotations": 1}
    assert figures["classes"]["field"] == {"pixels": 54, "images": 1}
    assert figures["ignored_pixels"] == 40
    assert figures["left_out"] == []
    assert [row["count"] for row in figures["notes"]] == [1, 1]


def test_options_arrive() -> None:
    write_coco(Path("export"), [polygon(FIELD), polygon(WEED, 2, iscrowd=1)])
    options = ("--background", "soil", "--ignore", "ring", "--crowd", "class", "--overlap", "area", "--link")
    shutil.move("export/a.png", "a.png")
    figures = json.loads(
        run_command("import-data", "coco", "export", "new", *options, "--images", ".", "--json", "-").stdout
    )
    assert names(Path("new")) == ["soil", "field", "weed"]
    assert figures["classes"]["field"]["pixels"] == 70  # the smaller one is on top
    assert Path("new/images/train/a.png").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("coco", "nowhere", "new"), "nowhere does not exist"),
        (("coco", GOLDEN / "coco", "taken"), "cannot write taken: it exists already"),
        (("voc", GOLDEN / "coco", "new"), "has no SegmentationClass"),
        (("coco", GOLDEN / "coco", "new", "--json", "taken"), "cannot write taken"),
        (("coco", GOLDEN / "coco", "new", "--images", "nowhere"), "folder of the images nowhere does not exist"),
    ],
)
def test_refusals(arguments: tuple[str | Path, ...], message: str) -> None:
    Path("taken").mkdir()
    assert message in run_command("import-data", *arguments, fails=1).stderr
    assert [path.name for path in Path().iterdir()] == ["taken"]


@pytest.mark.parametrize(("format", "package"), [("coco", "pycocotools"), ("cvat", "defusedxml")])
def test_a_missing_extra_is_named(format: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    error = run_command("import-data", format, GOLDEN / format, "new", fails=1).stderr
    assert f"the package {package}: pip install 'ddsm-zoo[formats]'" in error
    assert not Path("new").exists()
