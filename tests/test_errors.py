"""Errors keep their facts: through composition, through another error, and from one process to another."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ddsm_zoo.config import DDSMConfig, ModelConfig
from ddsm_zoo.data.datasets import open_layout
from ddsm_zoo.data.images import read_image
from ddsm_zoo.data.masks import MaskDecoder
from ddsm_zoo.data.pairs import Pair, SegmentationDataset
from ddsm_zoo.errors import ArgumentError, PackageError, UserError, facts
from ddsm_zoo.inference.preparation import choose_device
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.models.decoders import register_decoder
from ddsm_zoo.training.checkpoint import load_state
from ddsm_zoo.training.recipe import find_recipe
from ddsm_zoo.utils.files import OutputError, write_text
from ddsm_zoo.utils.plain_data import ConfigError, from_dict
from ddsm_zoo.zoo import registry


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


def test_a_failed_write_survives_the_way_between_processes_too() -> None:
    back = pickle.loads(pickle.dumps(OutputError(28, "No space left on device", "out/a.png")))
    assert str(back) == "cannot write out/a.png: No space left on device"
    assert (back.kind, back.path, back.errno) == ("cannot-write", "out/a.png", 28)


def test_a_missing_package_is_named_with_its_command() -> None:
    error = PackageError.needed("videos need", "av", "video")
    assert (error.kind, error.name, error.expected) == ("missing-package", "av", "pip install 'ddsm-zoo[video]'")
    assert "videos need the package av" in str(error)


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


def read_mask_of_another_size(folder: Path) -> None:
    Image.new("RGB", (6, 4)).save(folder / "a.png")
    Image.new("L", (5, 4)).save(folder / "mask.png")
    pair = Pair(folder / "a.png", folder / "mask.png", "a")
    SegmentationDataset([pair], CAMVID, MaskDecoder(ids={0: 0})).load(0)


def read_text_as_image(folder: Path) -> None:
    (folder / "a.png").write_text("no image")
    read_image(folder / "a.png")


@pytest.mark.parametrize(
    ("call", "base", "expected"),
    [
        (lambda folder: read_image(folder / "a.png"), FileNotFoundError, {"kind": "missing-file", "path": "a.png"}),
        (read_text_as_image, ValueError, {"kind": "image-format", "path": "a.png"}),
        (
            read_mask_of_another_size,
            ValueError,
            {"kind": "size-mismatch", "path": "mask.png", "got": (4, 5), "expected": (4, 6)},
        ),
        (
            lambda folder: open_layout(f"folder:{folder / 'none'}"),
            ValueError,
            {"kind": "missing-folder", "path": "none"},
        ),
        (lambda _: registry.find("uper_dsm_r50"), LookupError, {"kind": "unknown-model", "name": "uper_dsm_r50"}),
        (lambda _: find_recipe("finetun"), LookupError, {"kind": "unknown-recipe", "name": "finetun"}),
        (
            lambda _: choose_device("cuda:99"),
            ValueError,
            {"kind": "device", "got": "cuda:99", "expected": "cpu or cuda"},
        ),
        (
            lambda folder: load_state(folder / "state.pt"),
            FileNotFoundError,
            {"kind": "missing-file", "path": "state.pt"},
        ),
        (lambda folder: write_text(folder, "x"), OSError, {"kind": "cannot-write"}),
        (lambda _: register_decoder("mine", 3), TypeError, {"kind": "argument", "name": "mine", "got": 3}),  # type: ignore[arg-type]
    ],
)
def test_facts_of_what_users_meet(
    tmp_path: Path, call: Callable[[Path], object], base: type[Exception], expected: dict[str, object]
) -> None:
    with pytest.raises(UserError) as raised:
        call(tmp_path)
    assert isinstance(raised.value, base)
    path = raised.value.path
    found = {name: getattr(raised.value, name) for name in expected} | ({"path": Path(path).name} if path else {})
    assert {name: found[name] for name in expected} == expected
    assert len(str(raised.value).splitlines()) == 1
