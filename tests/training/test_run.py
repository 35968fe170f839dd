"""From a recipe and a data set to a saved model: the whole way, on rendered scenes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo.config import Preprocess
from ddsm_zoo.data.check.report import check_data
from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.training.loop import ProgressEvent
from ddsm_zoo.training.recipe import Recipe
from ddsm_zoo.training.run import train
from ddsm_zoo.utils.files import CheckpointError
from ddsm_zoo.utils.plain_data import ConfigError
from tests.support.errors import raises


def test_a_tiny_model_learns_rendered_scenes(tmp_path: Path) -> None:
    summary = train("tiny_scenes", "scenes:16", tmp_path, pretrained=False, changes={"jitter": 0.1})
    # one class everywhere scores 0.03: a third of the pixels is road, and ten classes are missed
    assert summary["best_miou"] > 0.15

    model = ddsm_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.pretrained_cfg["labels"]["names"] == CAMVID.names
    assert model.pretrained_cfg["recipe"] == "tiny_scenes"
    card = (tmp_path / "best/README.md").read_text()
    assert "\n# scenes: uper with ddsm on test_resnet.r160_in1k\n" in card
    assert "Training started from: random weights. Changes to the recipe: `jitter = 0.1`.\n" in card
    scores = ddsm_zoo.evaluate(model, "scenes:16")
    assert scores["miou"] == pytest.approx(summary["best_miou"], abs=1e-3)
    assert min(scores["iou"]["Road"], scores["iou"]["Sky"]) > 0.5


def test_changes_are_of_a_recipe_by_name(tmp_path: Path) -> None:
    with raises(ValueError, kind="options", name="changes", got=["epochs"]):
        train(Recipe.load("tiny_scenes"), "scenes:4", tmp_path, changes={"epochs": 1})


def test_the_least_size_of_images_belongs_to_the_weights(tmp_path: Path) -> None:
    recipe = Recipe(
        model="uper_ddsm_tiny", epochs=1, batch_size=2, crop_size=(32, 32), scale=(0.2, 0.2), workers=0,
        optimizer="adamw", lr=1e-3, min_size=(400, 533),
    )  # fmt: skip
    summary = train(recipe, "scenes:4", tmp_path, pretrained=False)
    model = ddsm_zoo.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True)
    assert ddsm_zoo.resolve_data_config(model).min_size == (400, 533)
    scores = ddsm_zoo.evaluate(model, "scenes:4")
    assert scores["preprocess"]["min_size"] == (400, 533)
    assert scores["miou"] == pytest.approx(summary["miou"], abs=1e-4)
    unchanged = ddsm_zoo.evaluate(model, "scenes:4", preprocess=Preprocess())
    assert scores["confusion"] != unchanged["confusion"]


def test_an_override_that_no_model_has_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(model="uper_ddsm_tiny", overrides={"pixel": 25})
    with raises(ConfigError, kind="unknown-field", name="pixel") as error:
        train(recipe, "scenes:2", tmp_path, pretrained=False)
    assert "'pixels'" in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_refused_run_leaves_the_model_of_the_earlier_one(tmp_path: Path) -> None:
    recipe = Recipe(model="uper_ddsm_tiny", epochs=1, batch_size=2, crop_size=(32, 32), workers=0)
    train(recipe, "scenes:2", tmp_path, pretrained=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    with raises(CheckpointError, kind="run-exists", path=tmp_path):
        train(recipe, "scenes:2", tmp_path, pretrained=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()} == before


def test_a_run_that_was_killed_before_its_model_was_complete_is_completed(tmp_path: Path) -> None:
    recipe = Recipe(model="uper_ddsm_tiny", epochs=1, batch_size=2, crop_size=(32, 32), workers=0)
    summary = train(recipe, "scenes:2", tmp_path, pretrained=False)
    complete = {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    (tmp_path / "best" / "config.json").unlink()
    resumed = train(recipe, "scenes:2", tmp_path, pretrained=False, resume=True)
    assert resumed == summary
    assert {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()} == complete


def test_a_built_model_is_trained_from_the_weights_that_it_has(tmp_path: Path) -> None:
    model = ddsm_zoo.create_model("uper_ddsm_tiny", labels=CAMVID)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    recipe = Recipe(
        model="uper_ddsm_tiny", epochs=1, batch_size=2, crop_size=(32, 32), workers=0, lr=1e-8, seed=3
    )  # fmt: skip
    train(recipe, "scenes:2", tmp_path, model=torch.nn.DataParallel(model))  # type: ignore[arg-type]  # is unwrapped
    saved = ddsm_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
    for name, tensor in saved.named_parameters():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-5)


def test_a_built_model_of_other_classes_or_with_a_second_source_of_weights_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(model="uper_ddsm_tiny", epochs=1, batch_size=2, crop_size=(32, 32), workers=0)
    other = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=3)
    with raises(ValueError, kind="classes-differ", got=3, expected=11):
        train(recipe, "scenes:2", tmp_path, model=other)
    with raises(ValueError, kind="options", name="pretrained", got=True):
        train(recipe, "scenes:2", tmp_path, model=other, pretrained=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "fused", "kind"), [({}, True, "fused-model"), ({"in_chans": 1}, False, "channels")]
)
def test_a_built_model_that_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], fused: bool, kind: str
) -> None:
    recipe = Recipe(model="uper_tiny", epochs=1, batch_size=2, crop_size=(32, 32), workers=0)
    model = ddsm_zoo.create_model("uper_tiny", labels=CAMVID, **options)
    with raises(ValueError, kind=kind):
        train(recipe, "scenes:2", tmp_path, model=model.fuse() if fused else model)
    assert not any(tmp_path.iterdir())


def test_a_built_model_whose_classes_come_in_another_order_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(model="uper_tiny", epochs=1, batch_size=2, crop_size=(32, 32), workers=0)
    for names in (CAMVID.names, CAMVID.names[::-1]):
        model = ddsm_zoo.create_model("uper_tiny", labels=names)
        with caplog.at_level(logging.WARNING, logger="ddsm_zoo.training"):
            train(recipe, "scenes:2", tmp_path / names[0], model=model)
        told = any(", ".join(names) in line and ", ".join(CAMVID.names) in line for line in caplog.messages)
        assert told == (names != CAMVID.names)
        assert model.provenance.labels == CAMVID


def write_pair(root: Path, split: str, image: np.ndarray, mask: np.ndarray) -> Path:
    """The path of the image."""
    for kind, pixels in (("images", image), ("masks", mask)):
        (root / kind / split).mkdir(parents=True)
        Image.fromarray(pixels).save(root / kind / split / "a.png")
    (root / "labels.json").write_text('{"names": ["this", "that"]}')
    return root / "images" / split / "a.png"


def test_data_with_errors_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture = np.full((8, 8, 3), len(split), np.uint8)
        write_pair(tmp_path / "data", split, picture, np.full((8, 8), 9, np.uint8))
    events: list[ProgressEvent] = []
    recipe = Recipe(model="uper_ddsm_tiny", epochs=1, batch_size=1, crop_size=(64, 64), workers=0)
    data = f"folder:{tmp_path}/data"
    with pytest.raises(DatasetError) as error:
        train(recipe, data, tmp_path / "out", pretrained=False, progress=events.append)
    assert str(check_data(data).errors[0]) in str(error.value)
    assert "a.png (9 on 100.0% of it, 64 pixels)" in str(error.value)
    assert [(event.phase, event.done, event.total) for event in events] == [("check", 1, 2), ("check", 2, 2)]
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_damaged_inside_is_one_line_from_a_loading_process_too(tmp_path: Path) -> None:
    """What is not looked at before a run, because decoding all images takes too long."""
    for seed, split in enumerate(("train", "val")):
        noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image = write_pair(tmp_path, split, noise, np.zeros((32, 32), np.uint8))
        content = bytearray(image.read_bytes())
        content[len(content) // 2] ^= 0xFF
        image.write_bytes(content)
    recipe = Recipe(model="uper_ddsm_tiny", epochs=1, batch_size=1, crop_size=(64, 64), workers=1)
    with raises(ImageError, kind="damaged-image", path="a.png") as error:
        train(recipe, f"folder:{tmp_path}", tmp_path / "out", pretrained=False)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("name", ["checkpoint_path", "num_classes", "in_chans"])
def test_overrides_are_of_the_architecture_alone(tmp_path: Path, name: str) -> None:
    with raises(ConfigError, kind="unknown-field", name=name):
        train(Recipe(model="uper_ddsm_tiny", overrides={name: 4}), "scenes:2", tmp_path, pretrained=False)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    def recipe(epochs: int) -> Recipe:
        return Recipe(model="uper_ddsm_tiny", epochs=epochs, batch_size=2, crop_size=(32, 32), workers=0, seed=3)

    train(recipe(1), "scenes:2", tmp_path, pretrained=False)
    summary = train(recipe(2), "scenes:2", tmp_path, pretrained=False, resume=True)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log if line["event"] == "epoch"] == [1, 2]
    assert summary["epochs"] == 2
