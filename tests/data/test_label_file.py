"""What ``labels.json`` may say of stored values, and what contradicts itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddsm_zoo.data.label_file import read_label_file
from ddsm_zoo.data.masks import DatasetError
from tests.support.data_sets import expect_one_line

I = 255  # noqa: E741 - the ignored class id, short to fit the tables


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
    ("content", "parts"),
    [
        ({"ids": {"x": "a"}}, ["stored value 'x'", "0 to 65535"]),
        ({"ids": {"70000": "a"}}, ["'70000'"]),
        ({"ids": {"-1": "a"}}, ["'-1'"]),
        ({"ids": {"01": "a", "1": "b"}}, ["stored value 1 twice"]),
        ({"ids": {"1": "d"}}, ["'d' for 1", "a, b, c", '"ignore"']),
        ({"ids": {"1": 3}}, ["'3' for 1", "0 to 2"]),
        ({"ids": {"1": True}}, ["'True' for 1"]),
        ({"ids": [1, 2]}, ["labels.ids"]),
        ({"ids": {"0": "a"}, "zero": "ignore"}, ['"ids" and "zero"']),
        ({"ids": {"0": "a"}, "ignore": 0}, ["ignored value 0", "class 'a'"]),
        ({"ignore": 1}, ["ignored value 1", "class 'b'", '"ids"']),
        ({"ignore": -1}, ["'-1'", "0 to 65535"]),
        ({"ignore": "0"}, ["\"ignore\" has '0'"]),
        ({"ignore": [1.5]}, ["'1.5'"]),
        ({"ignore_index": 0}, ['"zero": "ignore"']),
        ({"zero": 1}, ["labels.zero", "ignore"]),
        ({"ignore_colors": [[1, 2, 3]]}, ['expected "palette"']),
        ({"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]], "ignore_colors": [[1, 1, 1]]}, ["[1, 1, 1]", "class 'b'"]),
        ({"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]], "ignore_colors": [[1, 1, 300]]}, ["[1, 1, 300]"]),
        ({"palette": [[0, 0, 0], [1, 1, 1], [0, 0, 0]]}, ["same color, [0, 0, 0] to a, c"]),
        ({"names": ["a", " "]}, ["names[1] is empty"]),
        ({"mask_suffix": 3}, ["labels.mask_suffix"]),
    ],
)
def test_contradictions(tmp_path: Path, content: dict[str, Any], parts: list[str]) -> None:
    expect_one_line(lambda: read(tmp_path, **content), "labels.json", *parts)


def test_a_key_that_is_said_twice(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"names": ["a", "b"], "ids": {"0": "a", "0": "b"}}')
    expect_one_line(lambda: read_label_file(tmp_path / "labels.json"), "'0' twice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"names": ["a", "b",]}',
            "it is no JSON at line 1, column 2[01], expected an object .*no comma after the last",
        ),
        ("{'names': ['a', 'b']}", "it is no JSON at line 1, column 2, expected an object .*: double quotes"),
        (" \n", "it is empty, expected an object like"),
        ('["a", "b"]', r"it holds a list, expected an object like"),
        ("null", "it holds a value, expected an object like"),
        ("[" * 100_000, "it is nested too deeply, expected an object like"),
        ('{"names": ["a\\u0000", "b"]}', r"names\[0\] is 'a\\x00', expected a name without control characters"),
        ('{"names": ["a", "b\\ud800"]}', r"names\[1\] is 'b\\ud800', expected a name without control characters"),
        ('{"names": ["a", "b"], "ids": {}}', '"ids" is empty, expected the class of each stored value'),
    ],
)
def test_what_is_no_label_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=rf"labels\.json cannot be used: {message}") as caught:
        read_label_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Labels.json", "label.json", "labels.json.txt"])
def test_a_label_file_under_another_name_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DatasetError, match=rf"labels\.json is missing, .*; is {name} meant\? Call it labels\.json$"):
        read_label_file(tmp_path / "labels.json")
