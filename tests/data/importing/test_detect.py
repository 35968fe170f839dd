"""A folder that a tool exported is known by its files, and errors name the command to import it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ddsm_zoo.data.datasets import open_layout
from ddsm_zoo.data.importing.detect import detect, import_hint
from tests.support.command_line import run_command
from tests.support.data_sets import expect_one_line, write
from tests.support.exports import SOURCES, picture


@pytest.mark.parametrize("format", SOURCES)
def test_the_command_of_the_error_works(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``folder:``, as a folder without a kind, and with the format as a kind."""
    source = SOURCES[format](tmp_path / "my export")
    monkeypatch.chdir(tmp_path)
    words = f"import it: ddsm-zoo import-data {format} {shlex.quote(source.name)} 'my export-data'"
    for spec in (f"folder:{source.name}", source.name, f"{format}:{source.name}"):
        assert words in run_command("check-data", spec, fails=1).stderr
    command = shlex.split(words)
    run_command(*command[command.index("import-data") :])
    assert open_layout("folder:my export-data").splits()[0] == "train"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("project.json", '[{"id": 1, "annotations": [{"result": [{"from_name": "label"}]}]}]', "export as COCO"),
        ("via.json", '{"a.jpg12": {"filename": "a.jpg", "regions": [{"shape_attributes": {}}]}}', "export as COCO"),
        ("meta.json", '{"classes": [{"title": "car", "shape": "polygon"}], "tags": []}', "Supervisely"),
        ("a.json", '{"version": "2.0", "item": {"name": "a.jpg"}, "annotations": []}', "V7 Darwin"),
        ("min.json", '[{"image": "/data/a.jpg", "tag": [{"brushlabels": ["road"]}]}]', "Label Studio"),
        ("export.ndjson", '{"data_row": {"id": "x"}, "projects": {}}', "Labelbox"),
        ("annotations.xml", "<annotations><track id='1'/></annotations>", "CVAT for images"),
    ],
)
def test_exports_of_another_kind(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert words in import_hint(tmp_path)


def test_large_files_are_known_by_both_ends(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [' + " " * 10**6 + '], "annotations": [], "categories": []}')
    assert detect(tmp_path) == ("coco", tmp_path / "a.json")


def test_other_folders(tmp_path: Path) -> None:
    write(tmp_path / "images/train/a.png", picture())
    (tmp_path / "package.json").write_text('{"name": "other"}')
    (tmp_path / "config.yaml").write_text("names: 3\n")
    assert detect(tmp_path) is None
    assert import_hint(tmp_path) == import_hint(tmp_path / "nowhere") == ""
    expect_one_line(lambda: open_layout(f"folder:{tmp_path}"), "labels.json is missing", '"road", "car"')
    expect_one_line(lambda: open_layout(str(tmp_path)), f"did you mean folder:{tmp_path}?")


def test_many_images_do_not_hide_the_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddsm_zoo.data.importing.detect._PATHS", 20)
    (tmp_path / "a").mkdir()
    for number in range(30):
        (tmp_path / "a" / f"{number}.png").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/_classes.csv").touch()
    assert detect(tmp_path) == ("roboflow", tmp_path / "b/_classes.csv")
