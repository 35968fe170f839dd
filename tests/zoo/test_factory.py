"""From names to models and back: overrides, strict loading, round trips, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch

import ddsm_zoo
from ddsm_zoo.config import ConfigError, DDSMConfig, WeightsSpec
from ddsm_zoo.hub import client
from ddsm_zoo.hub.client import HubError
from ddsm_zoo.hub.config_file import read_manifest
from ddsm_zoo.hub.safetensors_io import pack_tensors, read_tensors
from ddsm_zoo.labels import CAMVID, CITYSCAPES
from ddsm_zoo.models import Segmenter, saving
from ddsm_zoo.utils import files
from ddsm_zoo.utils.files import CheckpointError, sha256_of
from ddsm_zoo.zoo import factory, registry
from ddsm_zoo.zoo.factory import WeightsNotFoundError, create_model
from tests.support.hub_server import HubServer
from tests.support.tiny_weights import LABELS, NAME, WEIGHTS, logits, one_line, saved_model, trained_model

trained = pytest.fixture(scope="module")(trained_model)
saved = pytest.fixture(saved_model)


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test fetches it must ask its own server for; the backbone's weights are never there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models registered in a test are gone after it."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))


# -- building


def test_a_name_gives_its_architecture() -> None:
    model = create_model("uper_ddsm.tiny")
    assert model.config == registry.model_config(NAME)
    assert model.pretrained_cfg["name"] == NAME
    assert "sha256" not in model.pretrained_cfg
    assert factory.resolve_data_config(model).mean == (0.5, 0.5, 0.5)


def test_a_task_model_without_weights_knows_its_classes() -> None:
    model = create_model("uper_ddsm_lite0_camvid")
    assert model.num_classes == 11
    assert model.pretrained_cfg["labels"]["names"][0] == "Sky"
    assert "labels" not in create_model("uper_ddsm_lite0_camvid", num_classes=4).pretrained_cfg


@pytest.mark.parametrize(
    ("overrides", "check"),
    [
        ({"pixels": 25}, lambda config: config.ddsm.pixels == 25 and config.ddsm.pool == 4),
        ({"ddsm": {"channels": 25}}, lambda config: config.ddsm.channels == 25 and config.ddsm.pool == 4),
        ({"ddsm": DDSMConfig(pixels=1)}, lambda config: config.ddsm == DDSMConfig(pixels=1)),
        ({"width": 16}, lambda config: config.width == 16 and config.ddsm.width == 16),
        ({"fused_stages": [2]}, lambda config: config.fused_stages == (2,)),
        ({"fusion": "none"}, lambda config: config.fusion == "none"),
        ({"num_classes": 2, "in_chans": 4}, lambda config: (config.num_classes, config.in_chans) == (2, 4)),
        ({"backbone": "r18"}, lambda config: config.backbone == "resnet18d.ra2_in1k"),
        ({"auxiliary": True}, lambda config: config.auxiliary),
    ],
)
def test_overrides_reach_the_config(overrides: dict[str, Any], check: Callable[[Any], bool]) -> None:
    model = create_model(NAME, **overrides)
    assert check(model.config)
    images = torch.rand(1, model.config.in_chans, 40, 33)
    assert model.eval()(images).shape == (1, model.config.num_classes, 40, 33)


def test_a_family_with_a_backbone_of_timm() -> None:
    assert create_model("uper_dcn", backbone="test_efficientnet.r160_in1k", width=16).num_classes == 19


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        ({"pixls": 9}, TypeError, "unknown override 'pixls'; did you mean 'pixels'"),
        ({"ddsm": {"chanels": 9}}, TypeError, "did you mean 'channels'"),
        ({"zzzz": 9}, TypeError, "expected one of auxiliary"),
        ({"ddsm": 9}, TypeError, "expected a DDSMConfig"),
        ({"pixels": 8}, ConfigError, "square of an odd number"),
        ({"dropout": None}, ConfigError, "expected float"),
        ({"width": 10**6}, ConfigError, "8 to 4096"),
        ({"num_classes": 0}, ConfigError, "1 to 65536"),
        ({"backbone": "resnet999"}, ValueError, "resnet999"),
        ({"pretrained": True, "checkpoint_path": "x"}, ValueError, "one source of weights"),
        ({"checkpoint_path": "absent.safetensors"}, FileNotFoundError, "absent.safetensors"),
    ],
)
def test_what_cannot_be_built(overrides: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        create_model(NAME, **overrides)
    one_line(error)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(registry.UnknownModelError, match="did you mean uper_ddsm_tiny"):
        create_model("upper_ddsm_tiny")
    for name in ("runs/mine/best", "file:model.safetensors", "https://hf_secret@example.org/model", "someone/model"):
        with pytest.raises(registry.UnknownModelError, match="local-dir:FOLDER") as error:
            create_model(name)
        assert "hf_secret" not in one_line(error)


# -- saving and loading


def test_a_saved_model_gives_the_same_logits(trained: Segmenter, saved: Path) -> None:
    loaded = create_model(f"local-dir:{saved}", pretrained=True)
    assert torch.equal(logits(loaded), logits(trained))
    assert loaded.config == trained.config
    assert loaded.pretrained_cfg["fresh"] == []
    recorded = {**WEIGHTS.metrics, "license": WEIGHTS.license}
    assert {**loaded.pretrained_cfg["metrics"], "license": loaded.pretrained_cfg["license"]} == recorded
    assert loaded.pretrained_cfg["labels"]["names"] == LABELS.names
    assert loaded.pretrained_cfg["sha256"] == sha256_of(saved / "model.safetensors")
    assert factory.resolve_data_config(loaded) == WEIGHTS.preprocess


def test_saving_twice_gives_the_same_files(trained: Segmenter, saved: Path, tmp_path: Path) -> None:
    factory.save_pretrained(create_model(f"local-dir:{saved}", pretrained=True), tmp_path / "again")
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


def test_without_pretrained_only_the_architecture_is_used(saved: Path, trained: Segmenter) -> None:
    (saved / "model.safetensors").unlink()
    fresh = create_model(f"local-dir:{saved}")
    assert fresh.config == trained.config
    assert not torch.equal(logits(fresh), logits(trained))
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        create_model(f"local-dir:{saved}", pretrained=True)


def test_a_model_that_nobody_described_is_saved_too(tmp_path: Path) -> None:
    model = create_model(NAME, num_classes=300)
    factory.save_pretrained(model, tmp_path)
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
    factory.save_pretrained(model, tmp_path / "reset")
    config = json.loads((tmp_path / "reset" / "config.json").read_text())
    assert config["label_names"] == [f"class {index}" for index in range(classes)]
    assert config["pretrained_cfg"]["metrics"] == {}


def test_group_norm_in_a_checkpoints_place_of_batch_norm_keeps_no_scores(saved: Path) -> None:
    """Weight and bias fit, the statistics are gone."""
    kept = create_model(NAME, num_classes=3, checkpoint_path=saved)
    changed = create_model(NAME, num_classes=3, checkpoint_path=saved, norm="group")
    assert kept.pretrained_cfg["metrics"]
    assert changed.pretrained_cfg["metrics"] == {}
    assert changed.pretrained_cfg["labels"] == kept.pretrained_cfg["labels"]


def test_the_auxiliary_head_is_not_saved(tmp_path: Path) -> None:
    model = create_model(NAME, auxiliary=True)
    factory.save_pretrained(model, tmp_path)
    assert not [name for name in read_tensors(tmp_path / "model.safetensors") if name.startswith("auxiliary.")]
    assert torch.equal(logits(create_model(f"local-dir:{tmp_path}", pretrained=True)), logits(model))
    again = create_model(f"local-dir:{tmp_path}", pretrained=True, auxiliary=True)
    assert again.pretrained_cfg["labels"]["names"][0] == "class 0"
    assert again.pretrained_cfg["fresh"]
    assert all(name.startswith("auxiliary.") for name in again.pretrained_cfg["fresh"])
    path = tmp_path / "with_head.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    assert torch.equal(logits(create_model(NAME, checkpoint_path=path)), logits(model))


def test_other_classes_keep_all_but_the_classifier(
    saved: Path, trained: Segmenter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ddsm_zoo"):
        model = create_model(f"local-dir:{saved}", pretrained=True, num_classes=7)
    assert model.pretrained_cfg["fresh"] == ["classifier.weight", "classifier.bias"]
    assert "classifier.weight, classifier.bias" in caplog.text
    assert not {"labels", "metrics", "published"} & model.pretrained_cfg.keys()
    assert model.classifier.weight.shape[0] == 7
    expected = trained.state_dict()
    for name, tensor in model.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(tensor, expected[name]), name


def test_the_same_class_count_keeps_the_classifier(saved: Path, trained: Segmenter) -> None:
    model = create_model(f"local-dir:{saved}", pretrained=True, num_classes=3)
    assert torch.equal(logits(model), logits(trained))


@pytest.mark.parametrize("where", ["model.safetensors", ""])
def test_a_checkpoint_file_or_folder(saved: Path, trained: Segmenter, where: str) -> None:
    model = create_model(NAME, num_classes=3, checkpoint_path=saved / where)
    assert torch.equal(logits(model), logits(trained))
    assert model.pretrained_cfg["labels"]["names"] == LABELS.names


def test_half_precision_is_loaded_as_float32(trained: Segmenter, tmp_path: Path) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in trained.state_dict().items()}
    safetensors.torch.save_file(halves, tmp_path / "half.safetensors")
    model = create_model(NAME, num_classes=3, checkpoint_path=tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.allclose(logits(model), logits(trained), atol=0.05)


def test_weights_swapped_for_others_that_fit_are_noticed(saved: Path, trained: Segmenter) -> None:
    swapped = {**trained.state_dict(), "classifier.bias": torch.zeros(3)}
    safetensors.torch.save_file(swapped, saved / "model.safetensors")
    for name, options in ((f"local-dir:{saved}", {"pretrained": True}), (NAME, {"checkpoint_path": saved})):
        with pytest.raises(CheckpointError, match=r"sha256.* saving it was interrupted") as error:
            create_model(name, num_classes=3, **options)
        one_line(error)


def test_a_config_describes_the_file_that_was_saved_with_it(saved: Path, trained: Segmenter) -> None:
    other = (saved / "model.safetensors").rename(saved / "other.safetensors")
    model = create_model(NAME, num_classes=3, checkpoint_path=other)
    assert torch.equal(logits(model), logits(trained))
    assert {"labels", "metrics", "recipe"}.isdisjoint(model.pretrained_cfg)


def test_nobody_is_given_a_license(tmp_path: Path) -> None:
    """Ours is of our weights alone."""
    factory.save_pretrained(create_model(NAME, num_classes=3), tmp_path)
    assert read_manifest(tmp_path / "config.json").pretrained_cfg.license == "unknown"
    task_weights = [factory.look_up(name).weights for name in registry.list_models()]
    assert {weights.license for weights in task_weights if weights is not None} == {"apache-2.0"}


def test_a_folder_in_the_home_folder(trained: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    factory.save_pretrained(trained, "~/model")
    assert torch.equal(logits(create_model("local-dir:~/model", pretrained=True)), logits(trained))


def test_describing_needs_a_label_for_each_class(trained: Segmenter) -> None:
    with pytest.raises(ValueError, match="19 labels for a model of 3 classes"):
        factory.describe_weights(trained, WeightsSpec(uri="file:x", dataset="cityscapes", labels=CITYSCAPES))


# -- weights of the zoo


def test_registered_weights_are_pinned(saved: Path, trained: Segmenter, own_table: None) -> None:
    path = saved / "model.safetensors"
    for name, sha256 in (("mine", sha256_of(path)), ("mine_changed", "0" * 64)):
        weights = WeightsSpec(uri=f"file:{path}", dataset="made up", labels=LABELS, sha256=sha256)
        registry.register_model(name, trained.config, weights)
    assert torch.equal(logits(create_model("mine", pretrained=True)), logits(trained))
    with pytest.raises(CheckpointError, match="expected 0000") as error:
        create_model("mine_changed", pretrained=True)
    one_line(error)


def test_unpublished_weights_say_so(own_table: None) -> None:
    registry.register_model(
        "mine_published",
        registry.model_config(NAME),
        WeightsSpec(uri="file:x", dataset="cityscapes", labels=CITYSCAPES, sha256="0" * 64),
    )
    with pytest.raises(
        WeightsNotFoundError, match=r"not published yet.*train them with recipe cityscapes_r101,"
    ) as error:
        create_model("uper_ddsm_r101_cityscapes", pretrained=True)
    text = one_line(error)
    assert "mine_published" in text
    assert "hf-hub:ddsm-zoo/uper_ddsm_r101_cityscapes" in text


def test_an_unpublished_model_works_the_day_it_is_published(
    trained: Segmenter, saved: Path, server: HubServer, tmp_path: Path, own_table: None
) -> None:
    weights = WeightsSpec(uri="hf-hub:ddsm-zoo/mine", dataset="made up", labels=LABELS, recipe="mine")
    registry.register_model("mine", trained.config, weights)
    with pytest.raises(WeightsNotFoundError, match="no such repository"):
        create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")
    server.publish("ddsm-zoo/mine", {path.name: path.read_bytes() for path in saved.iterdir()})
    model = create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")
    assert torch.equal(logits(model), logits(trained))
    # Before its pin, what is known of it is what its repository says
    config = json.loads((saved / "config.json").read_text())["pretrained_cfg"]
    assert (config["license"], config["metrics"]) == ("cc0-1.0", {"miou (val)": 71.5})
    known = model.provenance.weights
    assert known is not None
    assert {"license": known.license, "metrics": dict(known.metrics), "sha256": known.sha256} == {
        name: config[name] for name in ("license", "metrics", "sha256")
    }
    assert (known.preprocess, known.uri) == (trained.provenance.preprocess, "hf-hub:ddsm-zoo/mine")


def test_a_pin_holds_for_our_repository_and_not_for_that_of_another_organization(
    trained: Segmenter, saved: Path, server: HubServer, tmp_path: Path, own_table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    commit = server.publish("ddsm-zoo/mine", files)
    pin = {"sha256": hashlib.sha256(files["model.safetensors"]).hexdigest(), "metrics": {"miou (val)": 70.0}}
    weights = WeightsSpec(uri=f"hf-hub:ddsm-zoo/mine@{commit}", dataset="made up", labels=LABELS, recipe="mine", **pin)
    registry.register_model("mine", trained.config, weights)
    known = create_model("mine", pretrained=True, cache_dir=tmp_path / "cache").provenance.weights
    assert known is not None
    assert (known.metrics, known.license) == ({"miou (val)": 70.0}, "cc0-1.0")

    theirs = create_model(f"local-dir:{saved}", pretrained=True)
    with torch.no_grad():
        theirs.get_classifier().weight.mul_(2)
    server.publish("somebody/mine", saving.pack(theirs))
    monkeypatch.setenv("DDSM_ZOO_ORG", "somebody")
    model = create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")
    assert torch.equal(logits(model), logits(theirs))
    monkeypatch.setenv("DDSM_ZOO_ORG", "nobody")
    with pytest.raises(WeightsNotFoundError, match="hf-hub:nobody/mine@main/config.json: no such repository"):
        create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")


def test_an_error_of_fetched_weights_names_their_address(
    trained: Segmenter, saved: Path, server: HubServer, tmp_path: Path, own_table: None
) -> None:
    server.publish("ddsm-zoo/mine", {path.name: path.read_bytes() for path in saved.iterdir()})
    weights = WeightsSpec(uri="hf-hub:ddsm-zoo/mine", dataset="made up", labels=LABELS)
    registry.register_model("mine", dataclasses.replace(trained.config, width=64), weights)
    with pytest.raises(CheckpointError, match="^hf-hub:ddsm-zoo/mine does not fit the model"):
        create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")


def test_a_repository_of_other_classes_is_refused(
    trained: Segmenter, saved: Path, server: HubServer, tmp_path: Path, own_table: None
) -> None:
    server.publish("ddsm-zoo/mine", {path.name: path.read_bytes() for path in saved.iterdir()})
    weights = WeightsSpec(uri="hf-hub:ddsm-zoo/mine", dataset="camvid", labels=CAMVID)
    registry.register_model("mine", dataclasses.replace(trained.config, num_classes=11), weights)
    with pytest.raises(CheckpointError, match="hf-hub:ddsm-zoo/mine holds a model of 3 classes, expected the 11 of"):
        create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("load", [Segmenter.from_pretrained, factory.from_pretrained])
def test_settings_of_the_download(
    load: Callable[..., Segmenter], saved: Path, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish("someone/model", {path.name: path.read_bytes() for path in saved.iterdir()})
    server.private.add("someone/model")
    server.token = "hf_mine"
    options = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(HubError):
        load("someone/model", **options)
    expected = logits(load("someone/model", token="hf_mine", **options))
    before = len(server.requests)
    assert torch.equal(logits(load("someone/model", local_files_only=True, **options)), expected)
    assert len(server.requests) == before
    load("someone/model", token="hf_mine", force_download=True, **options)
    assert len(server.requests) > before


@pytest.mark.parametrize("load", [Segmenter.from_pretrained, factory.from_pretrained])
def test_weights_that_fit_in_part(
    load: Callable[..., Segmenter], saved: Path, trained: Segmenter, caplog: pytest.LogCaptureFixture
) -> None:
    """Only on request, and the rest is named."""
    path = saved / "model.safetensors"
    tensors = read_tensors(path)
    tensors["added.weight"] = tensors.pop("decoder.fuse.norm.bias")
    path.write_bytes(pack_tensors(tensors))
    config = json.loads((saved / "config.json").read_text())
    config["pretrained_cfg"]["sha256"] = sha256_of(path)
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="1 tensors missing; 1 tensors unexpected"):
        load(saved)
    with caplog.at_level(logging.WARNING):
        model = load(saved, strict=False)
    assert "fits only in part" in caplog.text
    assert "added.weight" in caplog.text
    assert model.provenance.fresh == ("decoder.fuse.norm.bias",)
    assert torch.equal(model.classifier.weight, trained.classifier.weight)
    path.write_bytes(pack_tensors({"other": torch.ones(1)}))
    config["pretrained_cfg"]["sha256"] = sha256_of(path)
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load(saved, strict=False)


def test_options_of_the_backbone_are_saved(tmp_path: Path) -> None:
    model = create_model("uper", backbone="test_convnext", width=16, backbone_args={"drop_path_rate": 0.5})
    factory.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["backbone_args"] == {"drop_path_rate": 0.5}
    assert factory.from_pretrained(tmp_path).config == model.config


@pytest.mark.parametrize(
    "args",
    [
        {"checkpoint_path": "weights.pth"},
        {"pretrained_cfg": "x"},
        {"depths": [9, 9, 9, 9]},
        {"drop_path_rate": -1},
        {"act_layer": "os.system"},
        {"img_size": [64] * 5},
    ],
)
def test_options_of_the_backbone_that_a_config_may_not_have(args: dict[str, Any]) -> None:
    """A config comes from anywhere: none of them may open a file or build without an end."""
    with pytest.raises(ConfigError, match=f"backbone_args.{next(iter(args))}") as error:
        create_model("uper_tiny", backbone_args=args)
    one_line(error)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("drop_path_rate", r"takes drop_path_rate as backbone_args=\{'drop_path_rate': ...\}"),
        ("features_only", "model.backbone gives the four feature levels"),
        ("encoder_name", "pass backbone="),
    ],
)
def test_options_of_timm_and_smp_are_known(option: str, hint: str) -> None:
    with pytest.raises(TypeError, match=hint) as error:
        create_model("uper_tiny", **{option: 1})
    one_line(error)


def test_a_model_without_classes_is_refused_with_the_way_to_features() -> None:
    with pytest.raises(ConfigError, match="num_classes is 0, expected 1 to 65536; forward_features") as error:
        create_model("uper_tiny", num_classes=0)
    one_line(error)


def test_a_wrapped_state_dict_as_a_checkpoint(trained: Segmenter, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "last.safetensors")
    model = create_model(NAME, num_classes=3, checkpoint_path=tmp_path / "last.safetensors")
    assert torch.equal(logits(model), logits(trained))


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code; .* `ddsm-zoo import") as error:
        create_model(NAME, checkpoint_path=tmp_path / "model.pth")
    one_line(error)


class CountingHash:
    """hashlib's own SHA-256, which counts the bytes that it is fed."""

    fed = 0

    def __init__(self) -> None:
        self._real = hashlib.sha256()
        self.hexdigest = self._real.hexdigest

    def update(self, content: bytes) -> None:
        CountingHash.fed += len(content)
        self._real.update(content)


@pytest.mark.parametrize("load", [Segmenter.from_pretrained, factory.from_pretrained])
def test_a_downloaded_file_is_hashed_once(
    load: Callable[..., Segmenter], saved: Path, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both when it arrives and when it is taken from the cache a moment later."""
    content = (saved / "model.safetensors").read_bytes()
    server.publish("someone/model", {path.name: path.read_bytes() for path in saved.iterdir()})
    monkeypatch.setattr(files, "hashlib", SimpleNamespace(sha256=CountingHash))
    for _ in range(2):
        CountingHash.fed = 0
        model = load("hf-hub:someone/model", cache_dir=tmp_path / "cache")
        assert CountingHash.fed == len(content)
        assert model.pretrained_cfg["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_model_on_the_hub(trained: Segmenter, saved: Path, server: HubServer, tmp_path: Path) -> None:
    commit = server.publish("someone/model", {path.name: path.read_bytes() for path in saved.iterdir()}, "v1")
    for revision in ("v1", commit):
        name = f"hf-hub:someone/model@{revision}"
        model = create_model(name, pretrained=True, cache_dir=tmp_path / "cache")
        assert torch.equal(logits(model), logits(trained))
        assert model.pretrained_cfg["uri"] == name
    assert all(
        "someone/model" in path or path.startswith("/lfs/") for path in server.paths("HEAD") + server.paths("GET")
    )
    with pytest.raises(HubError, match="no such revision"):
        create_model("hf-hub:someone/model", pretrained=True, cache_dir=tmp_path / "cache")


def test_imagenet_weights_that_cannot_be_fetched() -> None:
    with pytest.raises(HubError, match=r"hf-hub:timm/resnet18d\.ra2_in1k.*HF_HUB_OFFLINE") as error:
        create_model("uper_r18", pretrained=True)
    one_line(error)


@pytest.mark.parametrize("in_chans", [3, 5])
def test_imagenet_weights_of_an_architecture(server: HubServer, tmp_path: Path, in_chans: int) -> None:
    classifier = timm.create_model("test_resnet.r160_in1k")
    published = {client.WEIGHTS_FILE: pack_tensors(classifier.state_dict())}
    server.publish("timm/test_resnet.r160_in1k", published)
    model = create_model("uper_tiny", pretrained=True, in_chans=in_chans, cache_dir=tmp_path)
    loaded = model.backbone.body.state_dict()
    expected = {name: tensor for name, tensor in classifier.state_dict().items() if not name.startswith("fc.")}
    assert loaded.keys() == expected.keys()
    differing = {name for name in loaded if not torch.equal(loaded[name], expected[name])}
    # timm spreads the first convolution over other numbers of channels
    assert differing == (set() if in_chans == 3 else {"conv1.0.weight"} & loaded.keys() or {"conv1.weight"})


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite3.in1k", "convnext_tiny.fb_in22k", *registry.BACKBONES])
def test_the_input_is_what_the_backbone_was_trained_on(backbone: str) -> None:
    with torch.device("meta"):
        model = create_model("uper", backbone=backbone)
    known = timm.get_pretrained_cfg(model.config.backbone)
    preprocess = factory.resolve_data_config(model)
    assert (preprocess.mean, preprocess.std) == (known.mean, known.std)
    name = f"uper_{backbone}"
    assert name not in registry.list_models() or registry.find(name).preprocess == preprocess


def test_an_architecture_without_task_weights_does_not_predict() -> None:
    with pytest.raises(WeightsNotFoundError, match="uper_ddsm_r50 is an architecture") as error:
        factory.create_trained("uper_ddsm_r50")
    one_line(error)


@pytest.mark.parametrize(("name", "options"), [("uper_ddsm_r50", {}), ("uper_ddsm", {"backbone": "lite0"})])
def test_from_pretrained_never_gives_a_decoder_without_weights(name: str, options: dict[str, str]) -> None:
    with pytest.raises(WeightsNotFoundError, match=f"{name} is an architecture") as error:
        ddsm_zoo.from_pretrained(name, **options)
    one_line(error)


@pytest.mark.parametrize("name", ["uper_ddsm_lite0_camvid", "bundled:uper_ddsm_lite0_camvid.safetensors"])
def test_the_class_method_loads_saved_models_alone(name: str) -> None:
    with pytest.raises(ValueError, match="no saved model.*ddsm_zoo.from_pretrained") as error:
        Segmenter.from_pretrained(name)
    one_line(error)
    assert ddsm_zoo.from_pretrained("uper_ddsm_lite0_camvid").provenance.scored


def test_half_precision_on_disk(trained: Segmenter, tmp_path: Path) -> None:
    factory.save_pretrained(trained, tmp_path / "full")
    factory.save_pretrained(trained, tmp_path / "half", half=True)
    full, half = ((tmp_path / kind / client.WEIGHTS_FILE).stat().st_size for kind in ("full", "half"))
    assert half < 0.65 * full
    model = create_model(f"local-dir:{tmp_path / 'half'}", pretrained=True).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = logits(trained)
    assert not torch.equal(logits(model), expected)
    torch.testing.assert_close(logits(model), expected, atol=0.02 * expected.abs().max().item(), rtol=0)


def test_the_public_names_are_there() -> None:
    assert len(ddsm_zoo.__all__) <= 25
    assert sorted(ddsm_zoo.__all__) == dir(ddsm_zoo)
    assert all(getattr(ddsm_zoo, name) is not None for name in ddsm_zoo.__all__)
    with pytest.raises(AttributeError, match="create_modle"):
        _ = ddsm_zoo.create_modle


def test_a_single_class_by_any_name() -> None:
    """``classes`` is what smp calls it."""
    images = torch.zeros(1, 3, 40, 50)
    for options in ({"num_classes": 1}, {"classes": 1}, {"labels": ["crack"]}):
        model = ddsm_zoo.create_model("uper_ddsm_tiny", **options).eval()
        assert model(images).shape == (1, 1, 40, 50)
    with pytest.raises(TypeError, match="got num_classes=2 and classes=1, expected one of them"):
        ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=2, classes=1)
    assert ddsm_zoo.create_model("uper_ddsm_lite0", num_classes=1).num_classes == 1
    bundled = ddsm_zoo.create_model("uper_ddsm_lite0_camvid", pretrained=True, num_classes=1)
    assert set(bundled.provenance.fresh) == {"classifier.weight", "classifier.bias"}
