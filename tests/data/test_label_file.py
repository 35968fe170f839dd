"""What ``labels.json`` may say of stored values, and what contradicts itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddsm_zoo.data.label_file import read_label_file
from ddsm_zoo.data.masks import DatasetError
from tests.support.data_sets import expect_one_line
from tests.support.errors import raises

I = 255  # noqa: E741 - the ignored class id, short to fit the tables

GRAYS = [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def read(tmp_path: Path, **content: Any) -> Any:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"names": ["a", "b", "c"], **content}))
    return read_label_file(path)


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        ({}, {0: 0, 1: 1, 2: 2, 255: I}),
        ({"zero": "ignore"}, {0: I, 1: 0, 2: 1, 3: 2, 255: I}),
        ({"zero": "class"}, {0: 0, 1: 1, 2: 2, 255: I}),
        ({"ignore": 0}, {0: I, 1: 0, 2: 1, 3: 2}),
        ({"ignore": [0, 254]}, {0: I, 1: 0, 2: 1, 3: 2, 254: I}),
        ({"ignore": [7, 9]}, {0: 0, 1: 1, 2: 2, 7: I, 9: I}),
        ({"ignore": 7, "ignore_index": 255}, {0: 0, 1: 1, 2: 2, 7: I, 255: I}),
        ({"ids": {"0": "a", "128": "b", "255": 2}}, {0: 0, 128: 1, 255: 2}),
        ({"ids": {"7": "a", "8": "a", "11": "b", "0": "ignore"}}, {7: 0, 8: 0, 11: 1, 0: I, 255: I}),
        ({"ids": {"1": "a"}, "ignore": [0, 300]}, {1: 0, 0: I, 300: I}),
        ({"names": ["crack"]}, {0: 0, 1: 1, 255: I}),
        ({"names": ["crack"], "ids": {"0": "background", "9": "crack"}}, {0: 0, 9: 1, 255: I}),
        ({"names": ["ignore", "b"], "ids": {"4": "ignore"}}, {4: 0, 255: I}),
    ],
)
def test_stored_values(tmp_path: Path, content: dict[str, Any], classes: dict[int, int]) -> None:
    labels, decode, *_ = read(tmp_path, **content)
    assert decode.ids == classes
    assert labels.ignore_index == I
    decode.require_classes(labels)


def test_the_ignored_id_of_many_classes_is_free(tmp_path: Path) -> None:
    labels, decode, *_ = read(tmp_path, names=[f"c{index}" for index in range(300)])
    assert labels.ignore_index == 65535
    assert decode(np.array([[0, 255, 299, 65535]], np.uint16), Path("m")).tolist() == [[0, 255, 299, 65535]]


def test_colors_without_a_class(tmp_path: Path) -> None:
    palette = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    labels, decode, *_ = read(tmp_path, palette=palette, ignore_colors=[[224, 224, 192], [1, 1, 1]])
    assert decode.colors == {
        (0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 0): 2, (224, 224, 192): I, (1, 1, 1): I,
    }  # fmt: skip
    assert decode.describe(labels) == (
        "0 = a, 1 = b, 2 = c; 255 = ignored; 3 colors of classes; colors (224, 224, 192), (1, 1, 1) = ignored"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "labels.json").write_bytes('{"names": ["Straße", "木"]}'.encode(encoding))
    assert read_label_file(tmp_path / "labels.json").labels.names == ("Straße", "木")


def test_other_encodings_are_no_riddle(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes('{"names": ["Straße", "b"]}'.encode("cp1252"))
    expect_one_line(lambda: read_label_file(tmp_path / "labels.json"), "labels.json", "save it as UTF-8")


@pytest.mark.parametrize(
    ("content", "name", "got", "said"),
    [
        ({"ids": {"x": "a"}}, "ids", "x", "0 to 65535"),
        ({"ids": {"70000": "a"}}, "ids", "70000", "0 to 65535"),
        ({"ids": {"-1": "a"}}, "ids", "-1", "0 to 65535"),
        ({"ids": {"01": "a", "1": "b"}}, "ids", 1, "1 twice"),
        ({"ids": {"1": "d"}}, "ids", "d", "(a, b, c), its number from 0 to 2"),
        ({"ids": {"1": 3}}, "ids", 3, "from 0 to 2"),
        ({"ids": {"1": True}}, "ids", True, "'True' for 1"),
        ({"ids": [1, 2]}, "ids", [1, 2], "labels.ids"),
        ({"ids": {"0": "a"}, "zero": "ignore"}, "zero", "ignore", '"ids" and "zero"'),
        ({"ids": {"0": "a"}, "ignore": 0}, "ignore", 0, "class 'a'"),
        ({"ignore": 1}, "ignore", 1, "class 'b'"),
        ({"ignore": -1}, "ignore", -1, "0 to 65535"),
        ({"ignore": "0"}, "ignore", "0", "0 to 65535"),
        ({"ignore": [1.5]}, "ignore", 1.5, "0 to 65535"),
        ({"ignore_index": 0}, "ignore_index", 0, '"zero": "ignore"'),
        ({"zero": 1}, "zero", 1, "ignore"),
        ({"ignore_colors": [[1, 2, 3]]}, "ignore_colors", ((1, 2, 3),), '"palette"'),
        ({"palette": GRAYS, "ignore_colors": [[1, 1, 1]]}, "ignore_colors", (1, 1, 1), "class 'b'"),
        ({"palette": GRAYS, "ignore_colors": [[1, 1, 300]]}, "ignore_colors", (1, 1, 300), "0 to 255"),
        ({"palette": [*GRAYS[:2], [0, 0, 300]]}, "palette", (0, 0, 300), "0 to 255"),
        ({"palette": [*GRAYS[:2], [0, 0, 0]]}, "palette", (0, 0, 0), "a, c"),
        ({"names": ["a", " "]}, "names[1]", " ", "class 1"),
        ({"mask_suffix": 3}, "mask_suffix", 3, "str"),
    ],
)
def test_contradictions(tmp_path: Path, content: dict[str, Any], name: str, got: object, said: str) -> None:
    with raises(DatasetError, kind="label-file", path="labels.json", name=f"labels.{name}", got=got) as caught:
        read(tmp_path, **content)
    assert said in str(caught.value)


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"names": ["a", "b"], "ids": {"0": "a", "0": "b"}}')
    with raises(DatasetError, kind="label-file", path="labels.json", got="0"):
        read_label_file(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("text", "name", "got"),
    [
        ("{'names': ['a', 'b']}", None, "no JSON at line 1, column 2"),
        (" \n", None, "empty"),
        ('["a", "b"]', None, "a list"),
        ("null", None, "a value"),
        ("[" * 100_000, None, "nested too deeply"),
        ('{"names": ["a\\u0000", "b"]}', "labels.names[0]", "a\x00"),
        ('{"names": ["a", "b\\ud800"]}', "labels.names[1]", "b\ud800"),
        ('{"names": ["a", "b"], "ids": {}}', "labels.ids", {}),
    ],
)
def test_what_is_no_label_file(tmp_path: Path, text: str, name: str | None, got: object) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with raises(DatasetError, kind="label-file", path=path, name=name, got=got) as caught:
        read_label_file(path)
    assert str(caught.value).isprintable()


def test_a_comma_too_many_is_found(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"names": ["a", "b",]}')
    with raises(DatasetError, kind="label-file", path="labels.json") as error:
        read_label_file(tmp_path / "labels.json")
    assert re.search(r"line 1, column 2[01]\b", str(error.value))  # where the parser stops depends on Python
    assert "comma" in str(error.value)


@pytest.mark.parametrize("name", ["Labels.json", "label.json", "labels.json.txt"])
def test_a_label_file_under_another_name_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with raises(DatasetError, kind="missing-labels", path="labels.json") as error:
        read_label_file(tmp_path / "labels.json")
    assert f" {name} " in str(error.value)
