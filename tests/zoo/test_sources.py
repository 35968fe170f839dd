"""Weights of the table and of the Hub: pins, publication, settings of the download, ImageNet's weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

from ddsm_zoo.config import WeightsSpec
from ddsm_zoo.hub.faults import HubError
from ddsm_zoo.hub.model_files import WEIGHTS_FILE
from ddsm_zoo.hub.safetensors_io import pack_tensors
from ddsm_zoo.labels import CAMVID, CITYSCAPES
from ddsm_zoo.models import Segmenter, saving
from ddsm_zoo.utils import files
from ddsm_zoo.utils.files import CheckpointError, sha256_of
from ddsm_zoo.zoo import registry
from ddsm_zoo.zoo.factory import create_model, from_pretrained
from ddsm_zoo.zoo.sources import WeightsNotFoundError
from tests.support.errors import raises
from tests.support.hub_server import HubServer
from tests.support.tiny_weights import LABELS, NAME, logits, saved_model, trained_model

trained = pytest.fixture(scope="module")(trained_model)
saved = pytest.fixture(saved_model)


def test_registered_weights_are_pinned(saved: Path, trained: Segmenter, own_table: None) -> None:
    path = saved / "model.safetensors"
    for name, sha256 in (("mine", sha256_of(path)), ("mine_changed", "0" * 64)):
        weights = WeightsSpec(uri=f"file:{path}", dataset="made up", labels=LABELS, sha256=sha256)
        registry.register_model(name, trained.config, weights)
    assert torch.equal(logits(create_model("mine", pretrained=True)), logits(trained))
    with raises(CheckpointError, kind="damaged-weights", got=sha256_of(path), expected="0" * 64):
        create_model("mine_changed", pretrained=True)


def test_a_folder_without_its_prefix_is_suggested_with_it(tmp_path: Path) -> None:
    with raises(LookupError, kind="unknown-model", name=str(tmp_path)) as error:
        create_model(str(tmp_path))
    assert f"did you mean local-dir:{str(tmp_path)[:40]}" in str(error.value)


def test_unpublished_weights_say_so(own_table: None) -> None:
    registry.register_model(
        "mine_published",
        registry.model_config(NAME),
        WeightsSpec(uri="file:x", dataset="cityscapes", labels=CITYSCAPES, sha256="0" * 64),
    )
    name = "uper_ddsm_r101_cityscapes"
    with raises(WeightsNotFoundError, kind="weights-not-published", name=name) as error:
        create_model(name, pretrained=True)
    text = str(error.value)
    assert " cityscapes_r101," in text
    assert "mine_published" in text
    assert "hf-hub:ddsm-zoo/uper_ddsm_r101_cityscapes" in text


def test_an_unpublished_model_works_the_day_it_is_published(
    trained: Segmenter, saved: Path, server: HubServer, tmp_path: Path, own_table: None
) -> None:
    weights = WeightsSpec(uri="hf-hub:ddsm-zoo/mine", dataset="made up", labels=LABELS, recipe="mine")
    registry.register_model("mine", trained.config, weights)
    with raises(WeightsNotFoundError, kind="weights-not-published", name="mine"):
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
    with pytest.raises(WeightsNotFoundError, match="hf-hub:nobody/mine@main"):
        create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")


def test_an_error_of_fetched_weights_names_their_address(
    trained: Segmenter, saved: Path, server: HubServer, tmp_path: Path, own_table: None
) -> None:
    server.publish("ddsm-zoo/mine", {path.name: path.read_bytes() for path in saved.iterdir()})
    weights = WeightsSpec(uri="hf-hub:ddsm-zoo/mine", dataset="made up", labels=LABELS)
    registry.register_model("mine", dataclasses.replace(trained.config, width=64), weights)
    with raises(CheckpointError, kind="weights-mismatch", name="hf-hub:ddsm-zoo/mine"):
        create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")


def test_a_repository_of_other_classes_is_refused(
    trained: Segmenter, saved: Path, server: HubServer, tmp_path: Path, own_table: None
) -> None:
    server.publish("ddsm-zoo/mine", {path.name: path.read_bytes() for path in saved.iterdir()})
    weights = WeightsSpec(uri="hf-hub:ddsm-zoo/mine", dataset="camvid", labels=CAMVID)
    registry.register_model("mine", dataclasses.replace(trained.config, num_classes=11), weights)
    with raises(CheckpointError, kind="classes-differ", got=3, expected=11):
        create_model("mine", pretrained=True, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("load", [Segmenter.from_pretrained, from_pretrained])
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


class CountingHash:
    """hashlib's own SHA-256, which counts the bytes that it is fed."""

    fed = 0

    def __init__(self) -> None:
        self._real = hashlib.sha256()
        self.hexdigest = self._real.hexdigest

    def update(self, content: bytes) -> None:
        CountingHash.fed += len(content)
        self._real.update(content)


@pytest.mark.parametrize("load", [Segmenter.from_pretrained, from_pretrained])
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
    with raises(HubError, kind="hub-revision"):
        create_model("hf-hub:someone/model", pretrained=True, cache_dir=tmp_path / "cache")


def test_imagenet_weights_that_cannot_be_fetched() -> None:
    with raises(HubError, kind="hub-offline", name="hf-hub:timm/resnet18d.ra2_in1k@main/model.safetensors"):
        create_model("uper_r18", pretrained=True)


@pytest.mark.parametrize("in_chans", [3, 5])
def test_imagenet_weights_of_an_architecture(server: HubServer, tmp_path: Path, in_chans: int) -> None:
    classifier = timm.create_model("test_resnet.r160_in1k")
    published = {WEIGHTS_FILE: pack_tensors(classifier.state_dict())}
    server.publish("timm/test_resnet.r160_in1k", published)
    model = create_model("uper_tiny", pretrained=True, in_chans=in_chans, cache_dir=tmp_path)
    loaded = model.backbone.body.state_dict()
    expected = {name: tensor for name, tensor in classifier.state_dict().items() if not name.startswith("fc.")}
    assert loaded.keys() == expected.keys()
    differing = {name for name in loaded if not torch.equal(loaded[name], expected[name])}
    # timm spreads the first convolution over other numbers of channels
    assert differing == (set() if in_chans == 3 else {"conv1.0.weight"} & loaded.keys() or {"conv1.weight"})
