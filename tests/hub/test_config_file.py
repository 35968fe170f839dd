"""config.json: what is written comes back, and anything else is refused in one line before anything is built."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.config import ModelConfig, WeightsSpec
from ddsm_zoo.hub.config_file import Manifest, flatten, read_manifest, render_manifest
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises
from tests.support.tiny_weights import one_line, write


def manifest(**changes: Any) -> Manifest:
    labels = LabelSpace.from_names(("road", "sky", "tree"))
    values: dict[str, Any] = {
        "architecture": "uper_tiny",
        "num_classes": 3,
        "label_names": labels.names,
        "model_args": ModelConfig(decoder="uper", backbone="test_resnet.r160_in1k", num_classes=3),
        "pretrained_cfg": WeightsSpec(uri="file:model.safetensors", dataset="made up", labels=labels),
    }
    return Manifest(**{**values, **changes})


TEXT = render_manifest(manifest()).encode()


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(TEXT), **changes}).encode()


ARGS = json.loads(TEXT)["model_args"]
WEIGHTS = json.loads(TEXT)["pretrained_cfg"]
TWICE = {"names": ["\x1b[2J\n" + "a" * 1000] * 3, "palette": [[0, 0, 0]] * 3}
MANY = {"names": [str(number) for number in range(100_000)], "palette": [[0, 0, 0]] * 100_000, "ignore_index": -1}
UNREADABLE = {"kind": "syntax", "path": "config.json"}
BAD_CONFIGS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "empty": (b"", UNREADABLE),
    "binary": (bytes(range(256)), UNREADABLE),
    "half": (TEXT[:100], UNREADABLE),
    "deep": (b"[" * 100_000, UNREADABLE),
    "a list": (b"[]", {"got": [], "expected": "a table of fields"}),
    "NaN": (changed(num_classes=float("nan")), UNREADABLE),
    "unknown field": (changed(evil=1), {"kind": "unknown-field", "name": "evil"}),
    "missing field": (b"{}", {"kind": "unknown-field", "name": "architecture"}),
    "a decoder that is no name": (
        changed(model_args={**ARGS, "decoder": "../x"}),
        {"name": "decoder", "got": "../x"},
    ),
    "wrong type": (changed(model_args={**ARGS, "width": "wide"}), {"got": "wide", "expected": "int"}),
    "version 0.1.0's reading of DDSM": (
        changed(model_args={**ARGS, "fusion": "ddsm", "ddsm": {"width": 16}}),
        {"name": "ddsm.reading", "got": 1},
    ),
    "a million channels": (changed(model_args={**ARGS, "width": 10**6}), {"name": "width", "got": 10**6}),
    "a number beyond any float": (changed(model_args={**ARGS, "dropout": 10**400}), {"got": 10**400}),
    "a number of a thousand digits": (changed(model_args={**ARGS, "width": 10**1000}), {"got": 10**1000}),
    "means without deviations": (
        changed(pretrained_cfg={**WEIGHTS, "std": [1, 1]}),
        {"name": "mean", "got": (3, 2)},
    ),
    "a deviation of zero": (
        changed(pretrained_cfg={**WEIGHTS, "std": [1, 0, 1]}),
        {"name": "std", "got": (1, 0, 1)},
    ),
    "a size below one": (changed(pretrained_cfg={**WEIGHTS, "size": [-1, 4]}), {"name": "size", "got": (-1, 4)}),
    "a license that turns the line": (
        changed(pretrained_cfg={**WEIGHTS, "license": "a\u202eb"}),
        {"got": "a\u202eb"},
    ),
    "half a character": (changed(pretrained_cfg={**WEIGHTS, "license": "a\ud800"}), {"got": "a\ud800"}),
    "classes that disagree": (changed(num_classes=4), {"kind": "classes-differ"}),
    "names that disagree": (
        changed(label_names=["a", "b", "c"]),
        {"kind": "classes-differ", "name": "label_names"},
    ),
    "weights of another kind": (changed(pretrained_cfg=3), {"got": 3}),
    "a backbone of many letters": (
        changed(model_args={**ARGS, "backbone": "a" * 10**6}),
        {"name": "backbone"},
    ),
    "a key of many characters": (changed(**{"a" * 10**6: 1}), {"kind": "unknown-field"}),
    "a key that turns the line": (
        changed(pretrained_cfg={**WEIGHTS, "metrics": {"a\n\x1b[2J": "b"}}),
        {"got": "b", "expected": "float"},
    ),
    "a number of many digits": (b"[1" + b"0" * 4000 + b".0e999]", UNREADABLE),
    "a class twice": (
        changed(label_names=["a"] * 3, pretrained_cfg={**WEIGHTS, "labels": TWICE}),
        {"name": "names", "got": TWICE["names"][:1]},
    ),
    "a hundred thousand classes": (changed(pretrained_cfg={**WEIGHTS, "labels": MANY}), {"kind": "classes-differ"}),
    "no character": (changed(pretrained_cfg={**WEIGHTS, "license": "a\uffff"}), {"got": "a\uffff"}),
    "mean of another kind": (changed(pretrained_cfg={**WEIGHTS, "mean": "gray"}), {"got": "gray"}),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs(tmp_path: Path, case: str) -> None:
    content, facts = BAD_CONFIGS[case]
    with raises(ConfigError, **facts) as error:
        read_manifest(write(tmp_path / "config.json", content))
    assert one_line(error).isprintable()
    assert len(str(error.value)) < 700


def test_a_number_that_json_lacks_is_not_written() -> None:
    weights = dataclasses.replace(manifest().pretrained_cfg, metrics={"miou (val)": math.nan})
    with raises(ConfigError, kind="config", expected="finite ones"):
        manifest(pretrained_cfg=weights)


def test_a_config_of_absurd_length(tmp_path: Path) -> None:
    with raises(ConfigError, kind="syntax", path="config.json"):
        read_manifest(write(tmp_path / "config.json", b" " * (2**24 + 1)))
    with raises(FileNotFoundError, kind="missing-file", path="absent/config.json"):
        read_manifest(tmp_path / "absent" / "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*json.loads(TEXT)]), JSON)
def test_any_value_in_any_field_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "config.json"
    try:
        found = read_manifest(write(path, changed(**{name: value})))
    except ConfigError:
        return
    assert found == manifest(**{name: value})


def test_pretrained_cfg_has_timms_keys_and_comes_back() -> None:
    weights = manifest().pretrained_cfg
    data = flatten(weights)
    assert data["mean"] == weights.preprocess.mean
    assert "preprocess" not in data
    assert json.loads(render_manifest(manifest()))["pretrained_cfg"].keys() == data.keys()


def test_models_without_the_module_are_what_they_were_in_version_0_1_0(tmp_path: Path) -> None:
    """Which wrote no reading of the module into any config."""
    old = {name: value for name, value in ARGS["ddsm"].items() if name != "reading"}
    (tmp_path / "config.json").write_bytes(changed(model_args={**ARGS, "ddsm": old}))
    assert read_manifest(tmp_path / "config.json") == manifest()
