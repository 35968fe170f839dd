"""Names of models: families, backbones, registration, and what is said to who mistypes one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.config import ModelConfig, WeightsSpec
from ddsm_zoo.labels import CAMVID, LabelSpace
from ddsm_zoo.models import saving
from ddsm_zoo.zoo import registry, table
from ddsm_zoo.zoo.registry import UnknownModelError
from tests.support.errors import raises

NAMES = registry.list_models()


@pytest.mark.parametrize("family", ["uper", "uper_ddsm_c", "deeplabv3plus_dcn"])
def test_a_family_takes_any_backbone(family: str) -> None:
    config = registry.find(family, "convnext_tiny.fb_in22k").config
    assert (config.backbone, config.width) == ("convnext_tiny.fb_in22k", 256)
    assert registry.find(family, "lite0").config == registry.model_config(f"{family}_lite0")
    with raises(UnknownModelError, kind="no-backbone", name=family):
        registry.find(family)
    assert not registry.is_model(family)


def test_another_backbone_keeps_the_geometry_and_brings_its_own_input() -> None:
    entry = registry.find("uper_ddsm_r50", "lite0")
    assert entry.config.backbone == "tf_efficientnet_lite0.in1k"
    assert entry.config.fused_stages == (2, 3)
    assert entry.preprocess.mean == (0.5, 0.5, 0.5)


@given(st.sampled_from(NAMES), st.data())
def test_a_dot_reads_as_an_underscore(name: str, data: st.DataObject) -> None:
    places = [index for index, letter in enumerate(name) if letter == "_"]
    chosen = data.draw(st.sets(st.sampled_from(places)))
    dotted = "".join("." if index in chosen else letter for index, letter in enumerate(name))
    assert registry.find(dotted) == registry.find(name)
    assert registry.is_model(dotted)
    assert registry.list_models(dotted) == [name]


@given(st.text(max_size=200))
def test_any_other_name_is_refused_in_one_line(name: str) -> None:
    if registry.is_model(name):
        return
    with pytest.raises(UnknownModelError) as error:
        registry.find(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800


@given(st.sampled_from(NAMES), st.data())
def test_one_wrong_letter_brings_the_right_name(name: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(name) - 1))
    mistyped = name[:position] + "z" + name[position + 1 :]
    with raises(UnknownModelError, kind="unknown-model", name=mistyped) as error:
        registry.find(mistyped)
    assert any(suggested in str(error.value) for suggested in NAMES)
    assert len(name) < 16 or name in str(error.value) or "_r" in name  # r18, r34, r50 and r101 are near each other


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("uper_ddsm_r101.cityscape", ("'cityscape'", " uper_ddsm_r101_cityscapes")),
        ("uper_ddsm_lite0_ade20k", ("'ade20k'", " uper_ddsm_lite0_camvid, uper_ddsm_lite0")),
        ("upper_ddsm_lite0", (" uper_ddsm_lite0",)),
        ("UPER-DDSM-R50", (" uper_ddsm_r50",)),
        ("resnet", ("`ddsm-zoo list`",)),
    ],
)
def test_hints(name: str, shown: tuple[str, ...]) -> None:
    with raises(UnknownModelError, kind="unknown-model", name=name) as error:
        registry.find(name)
    assert all(text in str(error.value) for text in shown)


def test_lists_are_sorted_and_filtered() -> None:
    assert sorted(NAMES) == NAMES
    assert registry.list_models("uper_ddsm_r101*") == [
        "uper_ddsm_r101",
        "uper_ddsm_r101_camvid",
        "uper_ddsm_r101_camvid_cs",
        "uper_ddsm_r101_cityscapes",
    ]
    assert registry.list_models(["*_camvid", "*_camvid_cs"], exclude_filters="*_r101_*") == ["uper_ddsm_lite0_camvid"]
    assert registry.list_models("nothing*") == []


def test_only_published_weights_are_listed_as_pretrained(own_table: None) -> None:
    config = ModelConfig(decoder="uper", backbone="resnet18", num_classes=2)
    labels = LabelSpace.from_names(("a", "b"))
    registry.register_model("mine", config, WeightsSpec(uri="file:x", dataset="d", labels=labels))
    registry.register_model(
        "mine_published", config, WeightsSpec(uri="file:x", dataset="d", labels=labels, sha256="0" * 64)
    )
    assert registry.list_models("mine*") == ["mine", "mine_published"]
    assert registry.list_models("mine*", pretrained=True) == registry.list_pretrained("mine*") == ["mine_published"]
    assert registry.model_config("mine") == config


def test_registering_refuses(own_table: None) -> None:
    config = ModelConfig(decoder="uper", backbone="resnet18", num_classes=2)
    with raises(ValueError, kind="bad-name", name="uper_r50"):
        registry.register_model("uper_r50", config)
    for name in ("Mine", "my.model", "", "1st", "mine\n", "uper"):
        with raises(ValueError, kind="bad-name", name=name):
            registry.register_model(name, config)
    with raises(ValueError, kind="classes-differ", name="mine", got=11, expected=2):
        registry.register_model("mine", config, WeightsSpec(uri="file:x", dataset="d", labels=CAMVID))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uper_ddsm", "uper_ddsm"),
        ("uper_ddsm_r50_cityscapes", "uper_ddsm_r50_cityscapes"),
        ("uper_ddsmr50", "uper_ddsm"),
        ("deeplabv3plus_ddsm_r50", "uper_ddsm"),
        ("mine", "uper_ddsm"),
        (None, "uper_ddsm"),
    ],
)
def test_the_name_of_an_architecture(name: str | None, expected: str) -> None:
    assert saving.architecture_name(registry.model_config("uper_ddsm_r50"), name) == expected


def test_the_organization_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    publication = table.Publication(commit="c" * 40, sha256="0" * 64, metrics={"miou (val)": 80.0})
    monkeypatch.setattr(registry, "_TABLE", table.build_table({"uper_ddsm_r50_cityscapes": publication}))
    monkeypatch.setenv("DDSM_ZOO_ORG", "somebody")
    weights, bundled = (
        registry.find("uper_ddsm_r50_cityscapes").weights,
        registry.find("uper_ddsm_lite0_camvid").weights,
    )
    assert weights is not None
    # Commit, hash and scores of the pin are those of another repository
    assert weights.uri == "hf-hub:somebody/uper_ddsm_r50_cityscapes"
    assert (weights.sha256, weights.metrics) == (None, {})
    assert bundled is not None
    assert bundled.uri.startswith("bundled:")
