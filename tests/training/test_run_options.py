"""What a recipe may ask of a run on a data set: classes balanced, batch size found, parts frozen, images held out."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo.data.check.report import check_data
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.run import train
from ddsm_zoo.training.sampling import median_frequency
from ddsm_zoo.utils.files import CheckpointError
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.data_sets import write, write_labels
from tests.support.errors import raises
from tests.support.tiny_training import Crash, assert_same_outcome, at_step, crash, epochs_of, log_of


def recipe(**fields: Any) -> Recipe:
    tiny = {"model": "uper_ddsm_tiny", "epochs": 1, "batch_size": 2, "crop_size": (32, 32), "workers": 0}
    return Recipe(**{**tiny, **fields})


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Ten training images and no val; "car" is in three of them, "sky" in one, and there on a few pixels."""
    for index in range(10):
        mask = np.zeros((40, 48), np.uint8)
        mask[:, :10] = 1 if index in (2, 5, 7) else 0
        mask[:2, -5:] = 2 if index == 5 else 0
        image = np.repeat((mask * 60 + 5 * index)[..., None], 3, 2).astype(np.uint8)
        write(tmp_path / f"data/images/train/{index}.png", image)
        write(tmp_path / f"data/masks/train/{index}.png", mask)
    write_labels(tmp_path / "data")
    return f"folder:{tmp_path / 'data'}"


def started(out: Path) -> dict[str, Any]:
    """The recipe and the images of a run, as its log has them."""
    return log_of(out)[0]


def test_data_without_val_is_trained_on_with_some_images_held_out(tmp_path: Path, data: str) -> None:
    summary = train(recipe(holdout=0.3), data, tmp_path / "out", pretrained=False)
    assert started(tmp_path / "out")["images"] == {"train": 7, "val": 3}
    assert 0 <= summary["best_miou"] <= 1
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"val.png", "curve.png", "best"}


def test_classes_are_weighed_by_what_the_check_has_counted(tmp_path: Path, data: str) -> None:
    train(recipe(class_weights="auto", holdout=0.001), data, tmp_path / "out", pretrained=False)
    counts = torch.from_numpy(check_data(data).splits["train"].counts)
    kept = [index for index in range(10) if index not in held_out_by_name(tmp_path)]
    assert len(kept) == 9
    expected = median_frequency(counts[kept]).tolist()
    assert started(tmp_path / "out")["recipe"]["class_weights"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("epochs", "decay"), [(4, 0.0), (25, 0.8)])
def test_the_average_follows_the_length_of_the_run(tmp_path: Path, data: str, epochs: int, decay: float) -> None:
    """Four steps an epoch: the last 5 % are fewer than one step, or five."""
    chosen = recipe(ema_decay="auto", epochs=epochs, validate_every=epochs, holdout=0.2)
    with pytest.raises(Crash):
        train(chosen, data, tmp_path / "out", pretrained=False, progress=at_step(1, crash))
    assert started(tmp_path / "out")["recipe"]["ema_decay"] == pytest.approx(decay)


@pytest.mark.parametrize(("epochs", "line"), [(3, "12 optimizer steps (epochs: 3, steps in each: 4)"), (25, None)])
def test_a_short_run_says_so_in_one_line(
    tmp_path: Path, data: str, epochs: int, line: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Crash):
        train(recipe(epochs=epochs), data, tmp_path / "out", pretrained=False, progress=at_step(1, crash))
    told = [record.message for record in caplog.records if "optimizer steps" in record.message]
    assert len(told) == (line is not None)
    if line is not None:
        assert line in told[0]
        assert "set epochs to 25 for 100 steps" in told[0]


def test_classes_that_start_afresh_are_equally_likely_at_first(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that are the same in all channels, the mean of any features, give every class the same logit."""
    seen: list[torch.Tensor] = []

    def look(event: object) -> None:
        seen.append(model.classifier(torch.full((1, model.classifier.in_channels, 1, 1), 3.0)).flatten().detach())
        raise Crash

    original = ddsm_zoo.training.initial_model.create_model
    model = original("uper_ddsm_tiny", num_classes=3)

    def caught(*args: Any, **options: Any) -> Any:
        nonlocal model
        model = original(*args, **options)
        return model

    monkeypatch.setattr("ddsm_zoo.training.initial_model.create_model", caught)
    with pytest.raises(Crash):
        train(recipe(), data, tmp_path / "out", pretrained=False, progress=look)
    torch.testing.assert_close(seen[0], torch.zeros(3), atol=1e-4, rtol=0)


def held_out_by_name(tmp_path: Path) -> list[int]:
    from ddsm_zoo.data.splits import held_out

    return held_out(sorted(path.stem for path in (tmp_path / "data/images/train").iterdir()), 0.001)


def test_rendered_scenes_are_counted_too(tmp_path: Path) -> None:
    train(recipe(class_weights="auto", sampling="balanced"), "scenes:2", tmp_path, pretrained=False)
    assert len(started(tmp_path)["recipe"]["class_weights"]) == 11


def test_a_balanced_epoch_of_any_length_is_resumed_to_the_bit(tmp_path: Path, data: str) -> None:
    """From random weights too, which follow from the seed and from nothing before the run."""
    balanced = recipe(sampling="balanced", images_per_epoch=6, epochs=2, class_weights="auto", ohem=0.7)
    train(balanced, data, tmp_path / "whole", pretrained=False)
    with pytest.raises(Crash):
        train(balanced, data, tmp_path / "parts", pretrained=False, progress=at_step(5, crash))
    train(balanced, data, tmp_path / "parts", pretrained=False, resume=True)
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")
    assert len(epochs_of(tmp_path / "whole")) == 2


def test_a_batch_size_that_was_found_is_kept_when_the_run_goes_on(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_size = recipe(batch_size=0, lr=0.08)
    train(open_size, data, tmp_path / "out", pretrained=False)
    found = started(tmp_path / "out")["recipe"]
    assert (found["batch_size"], found["lr"]) == (2, pytest.approx(0.02))  # of eight images, four steps
    monkeypatch.setattr("ddsm_zoo.training.batch_size.free_memory", lambda device: 0)
    with raises(ValueError, kind="out-of-memory", name="crop_size"):
        train(open_size, data, tmp_path / "new", pretrained=False)
    longer = recipe(batch_size=0, lr=0.08, epochs=2)
    assert train(longer, data, tmp_path / "out", pretrained=False, resume=True)["epochs"] == 2
    assert log_of(tmp_path / "out")[2]["recipe"]["batch_size"] == 2


@pytest.mark.parametrize(
    ("fields", "pretrained", "facts"),
    [
        ({"frozen_stages": 1}, False, {"kind": "frozen-layers", "got": 1}),
        ({"frozen_norms": "backbone"}, False, {"kind": "frozen-layers", "got": "backbone"}),
        ({"frozen_norms": "all"}, None, {"kind": "frozen-layers", "got": "all"}),
        ({"frozen_norms": "all"}, False, {"kind": "frozen-layers", "got": "all"}),
        ({"class_weights": (1.0, 2.0)}, False, {"kind": "config", "got": 2}),
    ],
)
def test_what_cannot_be_asked(
    tmp_path: Path, data: str, fields: dict[str, Any], pretrained: bool | None, facts: dict[str, Any]
) -> None:
    with raises(ConfigError, name=next(iter(fields)), **facts):
        train(recipe(**fields), data, tmp_path / "out", pretrained=pretrained)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("norms", ["all", "auto"])
def test_frozen_parts_of_trained_weights_stay_as_they_were(tmp_path: Path, data: str, norms: Any) -> None:
    first = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3)
    ddsm_zoo.save_pretrained(first, tmp_path / "first")
    chosen = recipe(model=f"local-dir:{tmp_path}/first", frozen_stages="all", frozen_norms=norms)
    train(chosen, data, tmp_path / "out", pretrained=True)
    trained = ddsm_zoo.create_model(f"local-dir:{tmp_path}/out", pretrained=True).state_dict()
    before = first.state_dict()
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not {name for name in moved if name.startswith("backbone.") or "norm" in name}


@pytest.mark.parametrize(("backbone", "stride"), [("resnet18", 2), ("convnext_atto", 4)])
def test_logits_at_stride_2_where_the_backbone_has_that_level(
    tmp_path: Path, data: str, caplog: pytest.LogCaptureFixture, backbone: str, stride: int
) -> None:
    caplog.set_level(logging.INFO, logger="ddsm_zoo")
    chosen = recipe(overrides={"stride": 2, "backbone": backbone, "width": 8})
    train(chosen, data, tmp_path / "out", pretrained=False)
    model = ddsm_zoo.create_model(f"local-dir:{tmp_path}/out", pretrained=True)
    assert model.config.stride == stride
    assert [backbone in line for line in caplog.messages if "stride 2" in line] == [True] * (stride == 4)


@pytest.mark.parametrize("loaded", [True, False])
def test_norms_of_a_given_model_are_frozen_if_it_was_loaded(tmp_path: Path, data: str, loaded: bool) -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3)
    if loaded:
        ddsm_zoo.save_pretrained(model, tmp_path / "first")
        model = ddsm_zoo.create_model(f"local-dir:{tmp_path}/first", pretrained=True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    train(recipe(frozen_norms="auto"), data, tmp_path / "out", model=model)
    trained = ddsm_zoo.create_model(f"local-dir:{tmp_path}/out", pretrained=True).state_dict()
    assert all(torch.equal(trained[name], statistics) == loaded for name, statistics in before.items())


@pytest.mark.parametrize("given", [True, False])
def test_a_resumed_run_keeps_its_choice_of_norms(tmp_path: Path, data: str, given: bool) -> None:
    """The first run saves the given model, which then has task weights, or was begun by a recipe that froze none."""
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3)
    ddsm_zoo.save_pretrained(model, tmp_path / "first")
    named: dict[str, Any] = {} if given else {"model": f"local-dir:{tmp_path}/first"}
    start: dict[str, Any] = {"model": model} if given else {"pretrained": True}
    train(recipe(frozen_norms="auto" if given else "none", **named), data, tmp_path / "out", **start)
    summary = train(recipe(frozen_norms="auto", epochs=2, **named), data, tmp_path / "out", resume=True, **start)
    assert summary["epochs"] == 2
    last = [event for event in log_of(tmp_path / "out") if event["event"] == "start"][-1]
    assert last["recipe"]["frozen_norms"] == "none"


def test_norms_without_statistics_of_a_loaded_model_are_not_frozen(tmp_path: Path, data: str) -> None:
    ddsm_zoo.save_pretrained(ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3), tmp_path / "first")
    model = ddsm_zoo.create_model(f"local-dir:{tmp_path}/first", pretrained=True)
    model.provenance = dataclasses.replace(model.provenance, fresh=("decoder.fuse.norm.running_mean",))
    train(recipe(frozen_norms="auto"), data, tmp_path / "out", model=model)
    start = next(event for event in log_of(tmp_path / "out") if event["event"] == "start")
    assert start["recipe"]["frozen_norms"] == "none"


def test_a_refinement_without_statistics_learns_them_beside_frozen_norms(tmp_path: Path, data: str) -> None:
    ddsm_zoo.save_pretrained(ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3), tmp_path / "first")
    chosen = recipe(model=f"local-dir:{tmp_path}/first", frozen_norms="all", overrides={"stride": 2})
    train(chosen, data, tmp_path / "out", pretrained=True)
    state = ddsm_zoo.create_model(f"local-dir:{tmp_path}/out", pretrained=True).state_dict()
    assert state["refinement.mix.norm.num_batches_tracked"] > 0
    assert state["decoder.fuse.norm.num_batches_tracked"] == 0
    assert state["refinement.residual.weight"].any()


def test_batches_of_one_with_group_normalization_from_batch_normalized_weights(tmp_path: Path, data: str) -> None:
    ddsm_zoo.save_pretrained(ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3), tmp_path / "first")
    chosen = recipe(model=f"local-dir:{tmp_path}/first", batch_size=1, overrides={"norm": "group"})
    summary = train(chosen, data, tmp_path / "out", pretrained=True)
    model = ddsm_zoo.create_model(f"local-dir:{tmp_path}/out", pretrained=True)
    assert model.config.norm == "group"
    saved = json.loads((tmp_path / "out/best/config.json").read_text())
    assert saved["model_args"]["norm"] == "group"
    card = (tmp_path / "out/best/README.md").read_text()
    start = "Training started from: local-dir:first (trained on unknown)."
    assert f'{start} Changes to the recipe: `overrides = {{"norm": "group"}}`.' in card
    assert str(tmp_path) not in card
    assert summary["epochs"] == 1


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ({"ids": {"0": 0, "1": 1, "2": 2}}, {"ids": {"0": 0, "1": 2, "2": 1}}, "class ids of the values in masks"),
        ({"ignore_index": 255}, {"ignore": [254, 255]}, "class ids of the values in masks"),
        ({}, {"bits": 12}, "bits of 16-bit images"),
    ],
)
def test_a_run_does_not_go_on_where_masks_or_images_are_read_in_another_way(
    tmp_path: Path, data: str, before: dict[str, object], after: dict[str, object], name: str
) -> None:
    names = json.loads((tmp_path / "data/labels.json").read_text())["names"]
    write_labels(tmp_path / "data", names=names, **before)
    train(recipe(), data, tmp_path / "out", pretrained=False)
    state = (tmp_path / "out/last/state.pt").read_bytes()
    write_labels(tmp_path / "data", names=names, **after)
    with raises(CheckpointError, kind="other-data", name=name):
        train(recipe(epochs=2), data, tmp_path / "out", pretrained=False, resume=True)
    assert (tmp_path / "out/last/state.pt").read_bytes() == state


def test_a_run_does_not_go_on_from_other_weights_than_it_began_with(tmp_path: Path, data: str) -> None:
    """The model's card would name weights that the run has never seen."""
    train(recipe(), data, tmp_path / "out", pretrained=False)
    model = ddsm_zoo.create_model("uper_ddsm_tiny", labels=LabelSpace.from_names(["road", "car", "sky"]))
    with raises(CheckpointError, kind="other-data", name="initial weights"):
        train(recipe(epochs=2), data, tmp_path / "out", model=model, resume=True)


def test_masks_that_were_mended_are_said_when_the_run_goes_on(
    tmp_path: Path, data: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(recipe(), data, tmp_path / "out", pretrained=False)
    mask = tmp_path / "data/masks/train/2.png"
    write(mask, np.asarray(Image.open(mask))[::-1])
    train(recipe(epochs=2), data, tmp_path / "out", pretrained=False, resume=True)
    assert "masks have changed" not in caplog.text  # as many pixels of each class
    write(mask, np.zeros_like(np.asarray(Image.open(mask))))
    train(recipe(epochs=3), data, tmp_path / "out", pretrained=False, resume=True)
    assert caplog.text.count("the masks have changed since the run began") == 1
