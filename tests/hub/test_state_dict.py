"""Weights that do not fit are refused in one line and change nothing; a classifier's rows move by class names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.models import adapt_input_conv
from torch import Tensor

from ddsm_zoo.hub import state_dict
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.models import Segmenter, saving
from ddsm_zoo.utils.files import CheckpointError
from ddsm_zoo.utils.plain_data import ConfigError
from ddsm_zoo.zoo import registry
from ddsm_zoo.zoo.factory import create_model
from ddsm_zoo.zoo.publishing import save_pretrained
from tests.support.errors import raises
from tests.support.tiny_weights import LABELS, NAME, logits, saved_model, trained_model

trained = pytest.fixture(scope="module")(trained_model)
saved = pytest.fixture(saved_model)


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if part not in name}


SPOILED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], set[str]]] = {
    "missing": (lambda s: without(s, "classifier.bias"), {"missing"}),
    "many missing": (lambda s: without(s, "backbone."), {"missing"}),
    "extra": (lambda s: {**s, "evil": torch.zeros(1)}, {"unexpected"}),
    "shape": (
        lambda s: {**s, "classifier.weight": torch.zeros(3, 9, 1, 1)},
        {"of another shape"},
    ),
    "transposed": (
        lambda s: {**s, "classifier.weight": s["classifier.weight"].mT.reshape(32, 3, 1, 1)},
        {"of another shape"},
    ),
    "classes": (
        lambda s: {**s, "classifier.weight": torch.zeros(5, 32, 1, 1), "classifier.bias": torch.zeros(5)},
        {"of another shape"},
    ),
    "NaN": (lambda s: {**s, "classifier.bias": torch.full((3,), float("nan"))}, {"with NaN or infinity"}),
    "infinity": (lambda s: {**s, "classifier.bias": torch.full((3,), float("inf"))}, {"with NaN or infinity"}),
    "integers": (lambda s: {**s, "classifier.bias": torch.zeros(3, dtype=torch.int64)}, {"of another type"}),
    "nothing": (lambda s: {}, {"missing"}),
    "another model": (
        lambda s: create_model("deeplabv3plus_tiny", num_classes=3).state_dict(),
        {"missing", "unexpected", "of another shape"},
    ),
}


@pytest.mark.parametrize("case", SPOILED)
@pytest.mark.parametrize("way", ["checkpoint", "address"])
def test_weights_that_do_not_fit(saved: Path, trained: Segmenter, case: str, way: str) -> None:
    spoil, faults = SPOILED[case]
    safetensors.torch.save_file(spoil(trained.state_dict()), saved / "model.safetensors")
    with raises(CheckpointError, kind="weights-mismatch") as error:
        if way == "checkpoint":
            create_model(NAME, num_classes=3, checkpoint_path=saved / "model.safetensors")
        else:
            create_model(f"local-dir:{saved}", pretrained=True)
    assert set(error.value.got) == faults
    assert len(str(error.value)) < 700
    assert ("pass num_classes=5" in str(error.value)) == (case == "classes")


def test_a_refused_state_dict_changes_nothing(trained: Segmenter) -> None:
    model = create_model(NAME, num_classes=3)
    before = logits(model)
    with pytest.raises(CheckpointError):
        state_dict.load_state_dict(model, without(trained.state_dict(), "classifier.bias"))
    assert torch.equal(logits(model), before)


def test_a_classifier_of_no_shape_is_refused_too(trained: Segmenter) -> None:
    with raises(CheckpointError, kind="weights-mismatch") as error:
        state_dict.load_state_dict(trained, {**trained.state_dict(), "classifier.bias": torch.tensor(1.0)})
    assert "classifier.bias (), expected (3,)" in str(error.value)


def test_a_config_larger_than_memory_is_only_compared(trained: Segmenter) -> None:
    config = dataclasses.replace(trained.config, width=4096, num_classes=65536)
    with raises(CheckpointError, kind="weights-mismatch", name="the file"):
        state_dict.check_fit(saving.on_meta(Segmenter, config), trained.state_dict(), "the file")
    state_dict.check_fit(saving.on_meta(Segmenter, trained.config), trained.state_dict(), "the file")
    with raises(ConfigError, kind="model-too-large", name="the file", got=945503202):
        saving.check_size(saving.on_meta(Segmenter, config), "the file")
    saving.check_size(saving.on_meta(Segmenter, registry.model_config("uper_ddsm_r101")), "the file")


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with raises(CheckpointError, kind="fused-model"):
        save_pretrained(create_model(NAME, num_classes=3).fuse(), tmp_path / "fused")
    model = create_model(NAME, num_classes=3)
    with torch.no_grad():
        model.classifier.bias[0] = torch.inf
    with raises(CheckpointError, kind="weights-mismatch", got={"with NaN or infinity": 1}):
        save_pretrained(model, tmp_path / "infinite")
    assert list(tmp_path.iterdir()) == []


# -- transplants: the trained model knows road, sky and tree

ROWS = {"classifier.weight": (32, 1, 1), "classifier.bias": ()}


def rows(model: Segmenter) -> list[Tensor]:
    """Each class's weights and bias as one vector."""
    state = model.state_dict()
    return [*torch.cat((state["classifier.weight"].flatten(1), state["classifier.bias"][:, None]), dim=1)]


@pytest.mark.parametrize("as_labels", [list, tuple, LabelSpace.from_names])
@pytest.mark.parametrize("way", ["address", "checkpoint"])
def test_rows_follow_their_names(
    trained: Segmenter, saved: Path, caplog: pytest.LogCaptureFixture, as_labels: Callable[..., Any], way: str
) -> None:
    labels = as_labels(["Boat", "Vegetation", "Roads", "person"])
    with caplog.at_level(logging.INFO, logger="ddsm_zoo"):
        if way == "address":
            model = create_model(f"local-dir:{saved}", pretrained=True, labels=labels)
        else:
            model = create_model(NAME, checkpoint_path=saved, labels=labels)
    assert model.num_classes == 4
    before, after = rows(trained), rows(model)
    assert torch.equal(after[1], before[2])
    assert torch.equal(after[2], before[0])
    assert not any(torch.equal(after[new], old) for new in (0, 3) for old in before)
    assert model.pretrained_cfg["reused"] == {"Vegetation": "tree", "Roads": "road"}
    assert model.pretrained_cfg["reinitialized"] == ["Boat", "person"]
    assert model.pretrained_cfg["labels"]["names"] == ("Boat", "Vegetation", "Roads", "person")
    assert not {"metrics", "published"} & model.pretrained_cfg.keys()
    assert "Vegetation from tree, Roads from road; freshly initialized: Boat, person" in caplog.text
    expected = trained.state_dict()
    for name, tensor in model.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(tensor, expected[name]), name


def test_kept_classes_have_the_same_logits(trained: Segmenter, saved: Path) -> None:
    model = create_model(f"local-dir:{saved}", pretrained=True, labels=["tree", "boat", "sky"])
    torch.testing.assert_close(logits(model)[:, [0, 2]], logits(trained)[:, [2, 1]])
    save_pretrained(model, saved.parent / "moved")
    again = create_model(f"local-dir:{saved.parent / 'moved'}", pretrained=True)
    assert torch.equal(logits(again), logits(model))
    assert again.pretrained_cfg["labels"]["names"] == ("tree", "boat", "sky")


def test_the_same_names_change_nothing_but_the_colors(trained: Segmenter, saved: Path) -> None:
    labels = LabelSpace(names=LABELS.names, palette=((1, 2, 3),) * 3)
    model = create_model(f"local-dir:{saved}", pretrained=True, labels=labels)
    assert torch.equal(logits(model), logits(trained))
    assert model.pretrained_cfg["metrics"] == {"miou (val)": 71.5}
    assert model.pretrained_cfg["labels"]["palette"] == labels.palette
    assert model.pretrained_cfg["reused"] == {"road": "road", "sky": "sky", "tree": "tree"}
    assert model.pretrained_cfg["reinitialized"] == []


def test_weights_that_name_no_classes_have_those_that_are_given(trained: Segmenter, tmp_path: Path) -> None:
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "alone.safetensors")
    model = create_model(NAME, checkpoint_path=tmp_path / "alone.safetensors", labels=["a", "b", "c"])
    assert torch.equal(logits(model), logits(trained))
    assert model.pretrained_cfg["reused"] == {"a": "a", "b": "b", "c": "c"}
    with raises(CheckpointError, name="classifier.weight", got=(3, 32, 1, 1), expected=(2, 32, 1, 1)):
        create_model(NAME, checkpoint_path=tmp_path / "alone.safetensors", labels=["a", "b"])


def test_more_rows_than_names_are_refused(trained: Segmenter, saved: Path) -> None:
    """They would fit a model of five classes, under names that nobody gave them."""
    more = {name: torch.cat((trained.state_dict()[name], torch.ones(2, *shape))) for name, shape in ROWS.items()}
    safetensors.torch.save_file({**trained.state_dict(), **more}, saved / "model.safetensors")
    with raises(CheckpointError, name="classifier.weight", got=(5, 32, 1, 1), expected=(3, 32, 1, 1)):
        create_model(f"local-dir:{saved}", pretrained=True, labels=["sky", "boat", "fish", "net", "road"])


def test_no_name_in_common_is_a_fresh_classifier(saved: Path) -> None:
    model = create_model(f"local-dir:{saved}", pretrained=True, labels=["boat", "fish", "net"])
    assert model.pretrained_cfg["fresh"] == ["classifier.weight", "classifier.bias"]
    assert model.pretrained_cfg["reused"] == {}
    assert model.pretrained_cfg["reinitialized"] == ["boat", "fish", "net"]


def test_labels_without_weights_name_the_classes(tmp_path: Path) -> None:
    model = create_model(NAME, labels=["boat", "fish"])
    assert model.num_classes == 2
    assert (model.pretrained_cfg["reused"], model.pretrained_cfg["reinitialized"]) == ({}, ["boat", "fish"])
    save_pretrained(model, tmp_path)
    assert create_model(f"local-dir:{tmp_path}").pretrained_cfg["labels"]["names"] == ("boat", "fish")


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        (
            {"labels": ["a", "b"], "num_classes": 3},
            ValueError,
            {"kind": "classes-differ", "got": 2, "expected": 3},
        ),
        ({"labels": "road"}, TypeError, {"name": "labels", "got": "road"}),
        ({"labels": [1, 2]}, TypeError, {"name": "labels", "got": [1, 2]}),
        ({"labels": ["a", "a"]}, ValueError, {"name": "names", "got": ["a"]}),
        ({"labels": []}, ValueError, {"name": "names", "got": ()}),
    ],
)
def test_labels_that_cannot_be(options: dict[str, Any], error: type[Exception], facts: dict[str, object]) -> None:
    with raises(error, **facts):
        create_model(NAME, **options)


# -- other channels


def test_one_channel_counts_as_all_of_them(trained: Segmenter, saved: Path) -> None:
    model = create_model(f"local-dir:{saved}", pretrained=True, in_chans=1).eval()
    gray = torch.rand(1, 1, 40, 33)
    with torch.inference_mode():
        torch.testing.assert_close(model(gray), trained(gray.expand(1, 3, 40, 33)), atol=1e-4, rtol=1e-4)
    assert model.pretrained_cfg["labels"]["names"] == LABELS.names
    assert model.pretrained_cfg["metrics"] == {}


@pytest.mark.parametrize("in_chans", [2, 4, 8])
def test_kernels_are_spread_as_timm_spreads_them(trained: Segmenter, saved: Path, in_chans: int) -> None:
    model = create_model(f"local-dir:{saved}", pretrained=True, in_chans=in_chans)
    before, after = trained.state_dict(), model.state_dict()
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(changed) == 1
    torch.testing.assert_close(after[changed[0]], adapt_input_conv(in_chans, before[changed[0]]))
    save_pretrained(model, saved.parent / "spread")
    again = create_model(f"local-dir:{saved.parent / 'spread'}", pretrained=True)
    assert again.config.in_chans == in_chans
    assert torch.equal(again.state_dict()[changed[0]], after[changed[0]])
