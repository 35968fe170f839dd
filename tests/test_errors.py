"""Errors keep their facts: through composition, through another error, and from one process to another."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from ddsm_zoo.config import ConfigError, DDSMConfig, ModelConfig, from_dict
from ddsm_zoo.errors import ArgumentError, UserError, facts


def test_an_error_of_a_value_is_one_sentence_and_its_facts() -> None:
    error = ArgumentError.of("width", 3, "a square number", "choose 4")
    assert str(error) == "width is 3, expected a square number; choose 4"
    assert (error.kind, error.name, error.got, error.expected) == ("argument", "width", 3, "a square number")
    assert error.path is None
    assert isinstance(error, (UserError, ValueError))


def test_a_false_value_is_a_fact_too() -> None:
    assert ArgumentError.of("count", 0, "at least 1").got == 0
    assert facts(ArgumentError("count is 0", got=0)) == {"got": 0}


def test_an_error_survives_the_way_between_processes() -> None:
    error = ArgumentError("no mask", kind="missing-mask", path=Path("a.png"), got=[1, 2])
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is ArgumentError
    assert str(back) == "no mask"
    assert vars(back) == {"kind": "missing-mask", "path": "a.png", "got": [1, 2]}


def test_a_nested_error_keeps_the_facts_of_its_cause() -> None:
    with pytest.raises(ConfigError) as raised:
        from_dict(ModelConfig, {"decoder": "uper", "backbone": "resnet18", "ddsm": {"width": 5}})
    assert (raised.value.name, raised.value.got) == ("ddsm.width", 5)
    assert isinstance(raised.value.__cause__, ConfigError)


def test_errors_of_other_libraries_have_no_facts() -> None:
    assert facts(OSError(2, "gone", "file")) == {}
    assert facts(AttributeError("x", name="width")) == {}


@pytest.mark.parametrize("field", ["pixels", "channels", "width", "pool", "positions", "reading"])
def test_a_config_error_names_field_and_value(field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DDSMConfig(**{field: 0})
    assert (raised.value.name, raised.value.got) == (f"ddsm.{field}", 0)
    assert str(raised.value).startswith(f"ddsm.{field} is 0, expected ")
