"""The model inside the wheel: what it weighs, what it says on a fixed input, and that it sees a street."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ddsm_zoo
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.metrics import ConfusionMatrix
from ddsm_zoo.models import Segmenter

ROOT = Path(__file__).resolve().parents[2]
NAME = "uper_ddsm_lite0_camvid"
GOLDEN = ROOT / "tests" / "golden" / f"{NAME}.safetensors"
SAMPLE = ROOT / "ddsm_zoo" / "data" / "sample"


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return ddsm_zoo.create_model(NAME, pretrained=True).eval()


def test_it_is_light(model: Segmenter) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) < 8e6


def test_its_logits_are_the_recorded_ones(model: Segmenter) -> None:
    golden = load_file(GOLDEN)
    with torch.inference_mode():
        logits = model(golden["image"])
    torch.testing.assert_close(logits, golden["logits"], atol=1e-3, rtol=1e-3)


def test_it_sees_the_street_in_the_sample() -> None:
    result = ddsm_zoo.Predictor(NAME)(SAMPLE / "street.png")
    truth = torch.from_numpy(np.array(Image.open(SAMPLE / "street_mask.png")))
    confusion = ConfusionMatrix(len(CAMVID))
    confusion.update(torch.from_numpy(result.mask)[None], truth[None])
    iou = dict(zip(CAMVID.names, confusion.compute()["iou"], strict=True))
    assert iou["Road"] > 0.8
    assert iou["Sky"] > 0.8
    assert iou["Building"] > 0.5
    assert iou["Car"] > 0.5
