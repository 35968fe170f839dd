"""Names to models, and what is said when there is none."""

from __future__ import annotations

import pytest
import timm
import torch

import ddsm_zoo
from ddsm_zoo.models import Segmenter
from ddsm_zoo.zoo import registry, table
from ddsm_zoo.zoo.factory import create_model, create_trained, resolve_data_config
from ddsm_zoo.zoo.sources import WeightsNotFoundError
from tests.support.errors import raises
from tests.support.tiny_weights import NAME, saved_model, trained_model

trained = pytest.fixture(scope="module")(trained_model)
saved = pytest.fixture(saved_model)


def test_a_name_gives_its_architecture() -> None:
    model = create_model("uper_ddsm.tiny")
    assert model.config == registry.model_config(NAME)
    assert model.pretrained_cfg["name"] == NAME
    assert "sha256" not in model.pretrained_cfg
    assert resolve_data_config(model).mean == (0.5, 0.5, 0.5)


def test_a_task_model_without_weights_knows_its_classes() -> None:
    model = create_model("uper_ddsm_lite0_camvid")
    assert model.num_classes == 11
    assert model.pretrained_cfg["labels"]["names"][0] == "Sky"
    assert "labels" not in create_model("uper_ddsm_lite0_camvid", num_classes=4).pretrained_cfg


def test_unknown_names_are_refused() -> None:
    with raises(registry.UnknownModelError, kind="unknown-model", name="upper_ddsm_tiny") as error:
        create_model("upper_ddsm_tiny")
    assert " uper_ddsm_tiny" in str(error.value)
    for name in ("runs/mine/best", "file:model.safetensors", "https://hf_secret@example.org/model", "someone/model"):
        with raises(registry.UnknownModelError, kind="unknown-model") as error:
            create_model(name)
        assert "local-dir:FOLDER" in str(error.value)
        assert "hf_secret" not in str(error.value)


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite3.in1k", "convnext_tiny.fb_in22k", *table.BACKBONES])
def test_the_input_is_what_the_backbone_was_trained_on(backbone: str) -> None:
    with torch.device("meta"):
        model = create_model("uper", backbone=backbone)
    known = timm.get_pretrained_cfg(model.config.backbone)
    preprocess = resolve_data_config(model)
    assert (preprocess.mean, preprocess.std) == (known.mean, known.std)
    name = f"uper_{backbone}"
    assert name not in registry.list_models() or registry.find(name).preprocess == preprocess


def test_an_architecture_without_task_weights_does_not_predict() -> None:
    with raises(WeightsNotFoundError, kind="no-task-weights", name="uper_ddsm_r50"):
        create_trained("uper_ddsm_r50")


@pytest.mark.parametrize(("name", "options"), [("uper_ddsm_r50", {}), ("uper_ddsm", {"backbone": "lite0"})])
def test_from_pretrained_never_gives_a_decoder_without_weights(name: str, options: dict[str, str]) -> None:
    with raises(WeightsNotFoundError, kind="no-task-weights", name=name):
        ddsm_zoo.from_pretrained(name, **options)


@pytest.mark.parametrize("name", ["uper_ddsm_lite0_camvid", "bundled:uper_ddsm_lite0_camvid.safetensors"])
def test_the_class_method_loads_saved_models_alone(name: str) -> None:
    with raises(ValueError, kind="address", name=name) as error:
        Segmenter.from_pretrained(name)
    assert "ddsm_zoo.from_pretrained" in str(error.value)
    assert ddsm_zoo.from_pretrained("uper_ddsm_lite0_camvid").provenance.scored


def test_the_public_names_are_there() -> None:
    assert len(ddsm_zoo.__all__) <= 25
    assert sorted(ddsm_zoo.__all__) == dir(ddsm_zoo)
    assert all(getattr(ddsm_zoo, name) is not None for name in ddsm_zoo.__all__)
    with pytest.raises(AttributeError, match="create_modle"):
        _ = ddsm_zoo.create_modle
