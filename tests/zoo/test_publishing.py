"""Saved models: round trips, the files and what they say; tests/hub/test_upload.py has the way to the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

from ddsm_zoo.config import WeightsSpec
from ddsm_zoo.hub.config_file import read_manifest
from ddsm_zoo.hub.model_files import WEIGHTS_FILE
from ddsm_zoo.hub.safetensors_io import read_tensors
from ddsm_zoo.labels import CITYSCAPES
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils.files import sha256_of
from ddsm_zoo.zoo import registry
from ddsm_zoo.zoo.factory import create_model, from_pretrained, resolve_data_config
from ddsm_zoo.zoo.publishing import describe_weights, save_pretrained
from ddsm_zoo.zoo.sources import look_up
from tests.support.errors import raises
from tests.support.tiny_weights import LABELS, NAME, WEIGHTS, logits, saved_model, trained_model

trained = pytest.fixture(scope="module")(trained_model)
saved = pytest.fixture(saved_model)


def test_a_saved_model_gives_the_same_logits(trained: Segmenter, saved: Path) -> None:
    loaded = create_model(f"local-dir:{saved}", pretrained=True)
    assert torch.equal(logits(loaded), logits(trained))
    assert loaded.config == trained.config
    assert loaded.pretrained_cfg["fresh"] == []
    recorded = {**WEIGHTS.metrics, "license": WEIGHTS.license}
    assert {**loaded.pretrained_cfg["metrics"], "license": loaded.pretrained_cfg["license"]} == recorded
    assert loaded.pretrained_cfg["labels"]["names"] == LABELS.names
    assert loaded.pretrained_cfg["sha256"] == sha256_of(saved / "model.safetensors")
    assert resolve_data_config(loaded) == WEIGHTS.preprocess


def test_saving_twice_gives_the_same_files(trained: Segmenter, saved: Path, tmp_path: Path) -> None:
    save_pretrained(create_model(f"local-dir:{saved}", pretrained=True), tmp_path / "again")
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (saved, tmp_path / "again")
    )
    assert first == second
    assert sorted(first) == ["README.md", "config.json", "model.safetensors"]


def test_the_config_has_timms_keys(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert list(config) == ["architecture", "num_classes", "label_names", "model_args", "pretrained_cfg"]
    assert config["architecture"] == NAME
    assert config["label_names"] == ["road", "sky", "tree"]
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]


def test_the_card_tells_license_classes_and_results(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert huggingface_hub.ModelCard(card).data.license == "cc0-1.0"
    for text in ("road, sky, tree", "miou (val): 71.5", "Recipe: `none`", "create_model"):
        assert text in card


def test_a_model_that_nobody_described_is_saved_too(tmp_path: Path) -> None:
    model = create_model(NAME, num_classes=300)
    save_pretrained(model, tmp_path)
    loaded = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.pretrained_cfg["labels"]["names"][299] == "class 299"


@pytest.mark.parametrize("classes", [3, 5])  # as many as before, and others
def test_a_reset_classifier_keeps_neither_labels_nor_scores(saved: Path, tmp_path: Path, classes: int) -> None:
    model = create_model(f"local-dir:{saved}", pretrained=True)
    assert model.pretrained_cfg["metrics"]
    model.reset_classifier(classes)
    assert not {"labels", "metrics"} & model.pretrained_cfg.keys()
    assert model.pretrained_cfg["fresh"] == ["classifier.weight", "classifier.bias"]
    assert model.pretrained_cfg["dataset"] == "made up"
    save_pretrained(model, tmp_path / "reset")
    config = json.loads((tmp_path / "reset" / "config.json").read_text())
    assert config["label_names"] == [f"class {index}" for index in range(classes)]
    assert config["pretrained_cfg"]["metrics"] == {}


def test_the_auxiliary_head_is_not_saved(tmp_path: Path) -> None:
    model = create_model(NAME, auxiliary=True)
    save_pretrained(model, tmp_path)
    assert not [name for name in read_tensors(tmp_path / "model.safetensors") if name.startswith("auxiliary.")]
    assert torch.equal(logits(create_model(f"local-dir:{tmp_path}", pretrained=True)), logits(model))
    again = create_model(f"local-dir:{tmp_path}", pretrained=True, auxiliary=True)
    assert again.pretrained_cfg["labels"]["names"][0] == "class 0"
    assert again.pretrained_cfg["fresh"]
    assert all(name.startswith("auxiliary.") for name in again.pretrained_cfg["fresh"])
    path = tmp_path / "with_head.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    assert torch.equal(logits(create_model(NAME, checkpoint_path=path)), logits(model))


def test_nobody_is_given_a_license(tmp_path: Path) -> None:
    """Ours is of our weights alone."""
    save_pretrained(create_model(NAME, num_classes=3), tmp_path)
    assert read_manifest(tmp_path / "config.json").pretrained_cfg.license == "unknown"
    task_weights = [look_up(name).weights for name in registry.list_models()]
    assert {weights.license for weights in task_weights if weights is not None} == {"apache-2.0"}


def test_a_folder_in_the_home_folder(trained: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    save_pretrained(trained, "~/model")
    assert torch.equal(logits(create_model("local-dir:~/model", pretrained=True)), logits(trained))


def test_describing_needs_a_label_for_each_class(trained: Segmenter) -> None:
    with raises(ValueError, kind="classes-differ", got=19, expected=3):
        describe_weights(trained, WeightsSpec(uri="file:x", dataset="cityscapes", labels=CITYSCAPES))


def test_options_of_the_backbone_are_saved(tmp_path: Path) -> None:
    model = create_model("uper", backbone="test_convnext", width=16, backbone_args={"drop_path_rate": 0.5})
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["backbone_args"] == {"drop_path_rate": 0.5}
    assert from_pretrained(tmp_path).config == model.config


def test_half_precision_on_disk(trained: Segmenter, tmp_path: Path) -> None:
    save_pretrained(trained, tmp_path / "full")
    save_pretrained(trained, tmp_path / "half", half=True)
    full, half = ((tmp_path / kind / WEIGHTS_FILE).stat().st_size for kind in ("full", "half"))
    assert half < 0.65 * full
    model = create_model(f"local-dir:{tmp_path / 'half'}", pretrained=True).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = logits(trained)
    assert not torch.equal(logits(model), expected)
    torch.testing.assert_close(logits(model), expected, atol=0.02 * expected.abs().max().item(), rtol=0)
