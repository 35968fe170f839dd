"""Weights in a model: other classes, checkpoints, other precisions, and files that do not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ddsm_zoo.hub.safetensors_io import pack_tensors, read_tensors
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils.files import CheckpointError, sha256_of
from ddsm_zoo.zoo.factory import create_model, from_pretrained
from tests.support.errors import raises
from tests.support.tiny_weights import LABELS, NAME, logits, saved_model, trained_model

trained = pytest.fixture(scope="module")(trained_model)
saved = pytest.fixture(saved_model)


def test_without_pretrained_only_the_architecture_is_used(saved: Path, trained: Segmenter) -> None:
    (saved / "model.safetensors").unlink()
    fresh = create_model(f"local-dir:{saved}")
    assert fresh.config == trained.config
    assert not torch.equal(logits(fresh), logits(trained))
    with raises(FileNotFoundError, kind="missing-file", path="model.safetensors"):
        create_model(f"local-dir:{saved}", pretrained=True)


def test_group_norm_in_a_checkpoints_place_of_batch_norm_keeps_no_scores(saved: Path) -> None:
    """Weight and bias fit, the statistics are gone."""
    kept = create_model(NAME, num_classes=3, checkpoint_path=saved)
    changed = create_model(NAME, num_classes=3, checkpoint_path=saved, norm="group")
    assert kept.pretrained_cfg["metrics"]
    assert changed.pretrained_cfg["metrics"] == {}
    assert changed.pretrained_cfg["labels"] == kept.pretrained_cfg["labels"]


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
        with raises(CheckpointError, kind="damaged-weights", got=sha256_of(saved / "model.safetensors")):
            create_model(name, num_classes=3, **options)


def test_a_config_describes_the_file_that_was_saved_with_it(saved: Path, trained: Segmenter) -> None:
    other = (saved / "model.safetensors").rename(saved / "other.safetensors")
    model = create_model(NAME, num_classes=3, checkpoint_path=other)
    assert torch.equal(logits(model), logits(trained))
    assert {"labels", "metrics", "recipe"}.isdisjoint(model.pretrained_cfg)


@pytest.mark.parametrize("load", [Segmenter.from_pretrained, from_pretrained])
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
    with raises(CheckpointError, kind="weights-mismatch", got={"missing": 1, "unexpected": 1}):
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
    with raises(CheckpointError, kind="weights-mismatch"):
        load(saved, strict=False)


def test_a_wrapped_state_dict_as_a_checkpoint(trained: Segmenter, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "last.safetensors")
    model = create_model(NAME, num_classes=3, checkpoint_path=tmp_path / "last.safetensors")
    assert torch.equal(logits(model), logits(trained))


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pth")
    with raises(CheckpointError, kind="unsafe-file", path="model.pth"):
        create_model(NAME, checkpoint_path=tmp_path / "model.pth")
