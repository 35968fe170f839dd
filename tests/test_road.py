"""The road to the paper's rows in small: Cityscapes' layout, two processes, scores, submission, Hub, and by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo.config import WeightsSpec
from ddsm_zoo.labels import CITYSCAPES
from ddsm_zoo.training.recipe import find_recipe
from tests.support.cityscapes_root import write_root
from tests.support.command_line import run_command
from tests.support.data_sets import write
from tests.support.hub_server import HubServer, guarded_server
from tests.support.stand_ins import scene, shortened
from tests.support.together import run_together

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"train": "aachen", "val": "munster", "test": "berlin"}
NAME = "uper_ddsm_tiny_cityscapes"
# The benchmark's id of each of the 19 classes, in the order of training
LABEL_IDS = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])

server = pytest.fixture(guarded_server)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    root = tmp_path / "cityscapes"
    for split, city in SPLITS.items():
        names = [f"{city}_{number:06}_000019" for number in range(4 if split == "train" else 2)]
        write_root(root, names, split, masks=split != "test")
    for seed, image in enumerate(sorted(root.glob("leftImg8bit/*/*/*.png"))):
        write(image, scene(seed)[0][:48])  # the same random pixels in every split would be a leak
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe of the paper's rows on ResNet-50, for one epoch of small crops; all else is its own."""
    path = tmp_path / "short.toml"
    path.write_text(shortened(find_recipe("cityscapes_r50").read_text(encoding="utf-8")), encoding="utf-8")
    return path


def test_the_road_leads_from_images_to_a_name(
    cityscapes: Path, recipe: Path, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    data, run = f"cityscapes:{cityscapes}", tmp_path / "run"
    best = f"local-dir:{run / 'best'}"

    train = ["train", "--recipe", recipe, "--model", "uper_ddsm_tiny", "--no-pretrained", "--data", data, "--out", run]
    run_together(["-m", "ddsm_zoo", *map(str, train)], cwd=ROOT)
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert events[0]["processes"] == 2
    habits = {"batch_size": 16, "ohem": 0.7, "class_crops": 0.5, "jitter": 0.25, "blur": 1.0}
    assert {name: events[0]["recipe"][name] for name in habits} == habits

    run_command("evaluate", "--model", best, "--data", data, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["count"] == 2
    (validated,) = (event["miou"] for event in events if "miou" in event)
    assert scores["miou"] == pytest.approx(validated, abs=0.05)  # validated in bf16, scored in float32

    run_command("evaluate", "--model", best, "--data", data, "--split", "test", "--submission", tmp_path / "upload")
    upload = sorted((tmp_path / "upload").rglob("*.png"))
    assert [file.name for file in upload] == [f"berlin_00000{n}_000019_labelIds.png" for n in range(2)]
    for image, sent in zip(sorted(cityscapes.glob("leftImg8bit/test/*/*.png")), upload, strict=True):
        predicted = ddsm_zoo.Predictor(best)(image).mask
        np.testing.assert_array_equal(np.asarray(Image.open(sent)), LABEL_IDS[np.asarray(predicted)])

    pushed = run_command("push", best, f"ddsm-zoo/{NAME}").stdout
    uri = re.search(r"hf-hub:\S+", pushed)[0]
    spec = WeightsSpec(uri=uri, dataset="cityscapes", labels=CITYSCAPES)
    ddsm_zoo.register_model(NAME, ddsm_zoo.model_config("uper_ddsm_tiny"), spec)
    by_name = ddsm_zoo.create_model(NAME, pretrained=True).eval()
    saved = ddsm_zoo.create_model(best, pretrained=True).eval()
    images = torch.rand(1, 3, 48, 80)
    torch.testing.assert_close(by_name(images), saved(images), rtol=0, atol=0)
    assert by_name.pretrained_cfg["dataset"] == "cityscapes"
