"""Scores by the names of model and data: against counting by hand, on data sets as they lie on disk."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ddsm_zoo
from ddsm_zoo import Predictor, evaluate
from ddsm_zoo.data.datasets import DatasetError, open_dataset
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.evaluation.evaluate import Request
from ddsm_zoo.inference.protocol import InferenceProtocol
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.metrics import BoundaryFScore, BoundaryIoU, ConfusionMatrix
from ddsm_zoo.models import Segmenter
from tests.support.competing_models import competing_model
from tests.support.errors import raises
from tests.support.together import run_together

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return competing_model(3)


def write_camvid(root: Path, size: tuple[int, int], count: int, *, colors: bool) -> None:
    """Rendered scenes in the layout of class ids with 11 for void, or in that of the original's colors."""
    images, masks = root / "val", root / ("val_labels" if colors else "valannot")
    for folder in (images, masks):
        folder.mkdir(parents=True)
    for index in range(count):
        image, mask = render_scene(index, size)
        mask[: 5 * (index + 1)] = 255
        Image.fromarray(image).save(images / f"{index}.png")
        if colors:
            palette = np.array([*CAMVID.palette, (0, 0, 0)], np.uint8)
            Image.fromarray(palette[np.where(mask == 255, 11, mask)]).save(masks / f"{index}_L.png")
        else:
            Image.fromarray(np.where(mask == 255, 11, mask).astype(np.uint8)).save(masks / f"{index}.png")


def iou_by_hand(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """IoU of each class over all pairs of prediction and label, void left out."""
    ious = []
    for label in range(len(CAMVID)):
        hits = [((pred == label) & (target == label)).sum() for pred, target in pairs]
        either = [(((pred == label) | (target == label)) & (target != 255)).sum() for pred, target in pairs]
        ious.append(sum(hits) / sum(either) if sum(either) else math.nan)
    return ious


@pytest.mark.parametrize(("size", "colors"), [((360, 480), False), ((720, 960), True)])
def test_camvid_at_both_resolutions(model: Segmenter, tmp_path: Path, size: tuple[int, int], colors: bool) -> None:
    write_camvid(tmp_path, size, 2, colors=colors)
    result = evaluate(model, f"camvid:{tmp_path}", "val", protocol="whole")
    predictor = Predictor(model)
    pairs = []
    for index in range(2):
        image, mask = render_scene(index, size)
        mask[: 5 * (index + 1)] = 255
        pairs.append((predictor(image).mask, mask))
    expected = iou_by_hand(pairs)
    np.testing.assert_allclose(list(result["iou"].values()), expected, rtol=1e-3)
    assert result["miou"] == pytest.approx(np.nanmean(expected), rel=1e-4)
    assert result["resolutions"] == [list(size)]
    assert tuple(result["iou"]) == CAMVID.names
    assert np.sum(result["confusion"]) == sum((mask != 255).sum() for _, mask in pairs)


def test_images_predicted_smaller_are_compared_at_the_labels_size(model: Segmenter, tmp_path: Path) -> None:
    write_camvid(tmp_path, (144, 192), 1, colors=True)
    (tmp_path / "half.toml").write_text("size = [72, 96]")
    result = evaluate(model, f"camvid:{tmp_path}", protocol=tmp_path / "half.toml")
    image, mask = open_dataset(f"camvid:{tmp_path}", "val").load(0)
    config = ddsm_zoo.resolve_data_config(model)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    small = F.interpolate(((image / 255 - mean) / std)[None], (72, 96), mode="bilinear")
    with torch.inference_mode():
        scores = F.interpolate(model(small), (144, 192), mode="bilinear")
    expected = iou_by_hand([(scores.argmax(1)[0].numpy(), mask.numpy())])
    np.testing.assert_allclose(list(result["iou"].values()), expected, rtol=1e-3)
    assert result["protocol"]["size"] == (72, 96)


def test_all_figures_equal_predicting_one_by_one(model: Segmenter) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(model, "scenes:2", "val", boundary=True, progress=lambda done, total: seen.append((done, total)))
    metrics = ConfusionMatrix(len(CAMVID)), BoundaryFScore(len(CAMVID)), BoundaryIoU(len(CAMVID))
    predictor = Predictor(model)
    for index in range(2):
        image, mask = render_scene(1_000_000_000 + index)
        for metric in metrics:
            metric.update(torch.from_numpy(predictor(image).mask)[None], torch.from_numpy(mask)[None])
    confusion, f_score, boundary_iou = (metric.compute() for metric in metrics)
    assert result["miou"] == pytest.approx(confusion["miou"], rel=1e-4)
    np.testing.assert_allclose(list(result["iou"].values()), confusion["iou"], rtol=1e-3)
    for key in (0.00088, 0.001875, 0.00375, 0.005, "mean"):
        assert result["boundary_f"][key] == pytest.approx(f_score[key], rel=1e-3)
        assert result["boundary_f"]["present_only"][key] == pytest.approx(f_score["present_only"][key], rel=1e-3)
    assert result["boundary_f_pixels"] == {0.00088: [1], 0.001875: [2], 0.00375: [3], 0.005: [3]}
    assert result["boundary_iou"] == pytest.approx(boundary_iou["boundary_iou"], rel=1e-3)
    assert seen == [(1, 2), (2, 2)]
    assert result["count"] == 2
    assert result["resolutions"] == [[360, 480]]


def test_a_result_says_what_it_depends_on(tmp_path: Path, model: Segmenter) -> None:
    ddsm_zoo.save_pretrained(model, tmp_path)
    address = f"local-dir:{tmp_path}"
    result = evaluate(address, "scenes:1", boundary=True, protocol="flip")
    assert result["model"] == address
    assert len(result["weights"]["sha256"]) == 64
    assert (result["data"], result["split"], result["count"], result["dtype"]) == ("scenes:1", "val", 1, "float32")
    assert result["protocol"] == {
        "name": "flip",
        "size": None,
        "crop": None,
        "stride": None,
        "scales": (1.0,),
        "flip": True,
        "diagonal_shares": [0.00088, 0.001875, 0.00375, 0.005],
        "boundary_iou_ratio": 0.02,
    }
    assert result["versions"]["torch"] == torch.__version__
    assert result["versions"]["ddsm_zoo"] == ddsm_zoo.__version__


def test_radii_in_pixels_on_request(model: Segmenter) -> None:
    result = evaluate(model, "scenes:1", boundary=True, boundary_radii=(1, 12))
    metric = BoundaryFScore(len(CAMVID), (1, 12))
    image, mask = render_scene(1_000_000_000)
    metric.update(torch.from_numpy(Predictor(model)(image).mask), torch.from_numpy(mask))
    assert set(result["boundary_f"]) == {1, 12, "mean", "present_only"}
    for key in (1, 12, "mean"):
        assert result["boundary_f"][key] == pytest.approx(metric.compute()[key], rel=1e-3)
    assert result["protocol"]["radii"] == [1, 12]
    assert "diagonal_shares" not in result["protocol"]


def test_radii_that_cannot_be() -> None:
    with raises(ValueError, kind="argument", name="radii", got=(0.005,)):
        Request(data="scenes:1", boundary=True, boundary_radii=(0.005,))  # type: ignore[arg-type]  # what a user may give
    with raises(ValueError, kind="options", name="boundary_radii"):
        evaluate("not_a_model", "scenes:1", boundary_radii=(1, 2))


def test_evaluation_leaves_the_mode_of_every_part(model: Segmenter) -> None:
    """So that it can stand in a training loop of one's own."""
    model = copy.deepcopy(model).train()
    model.backbone.eval()
    before = [part.training for part in model.modules()]
    evaluate(model, "scenes:1")
    assert [part.training for part in model.modules()] == before


def test_what_cannot_be_scored(tmp_path: Path) -> None:
    with raises(DatasetError, kind="unknown-data"):  # the data is checked before the model
        evaluate("not_a_model_either", "camvit:somewhere")
    with raises(ValueError, kind="classes-differ", got=19, expected=11):
        evaluate(ddsm_zoo.create_model("uper_tiny"), "scenes:1")
    renamed = ddsm_zoo.create_model("uper_tiny", num_classes=11)
    names = [*CAMVID.names[:-1], "Horse"]
    renamed.provenance = dataclasses.replace(renamed.provenance, labels=dataclasses.replace(CAMVID, names=tuple(names)))
    with raises(ValueError, kind="classes-differ", got="Horse", expected="Bicyclist"):
        evaluate(renamed, "scenes:1")
    broken = ddsm_zoo.create_model("uper_tiny", num_classes=11)
    torch.nn.init.constant_(broken.classifier.bias, math.nan)
    with raises(ValueError, kind="nan-scores", name="image 0"):
        evaluate(broken, "scenes:1")
    with raises(FileNotFoundError, kind="missing-file", name="hole"):
        evaluate(broken, "scenes:1", protocol="hole")


@pytest.mark.parametrize("name", ["flip", "sliding", "multi_scale"])
def test_protocols_run_on_a_model(model: Segmenter, tmp_path: Path, name: str) -> None:
    write_camvid(tmp_path, (36, 48), 1, colors=False)
    result = evaluate(model, f"camvid:{tmp_path}", protocol=name)
    assert 0 < result["miou"] < 1
    assert result["protocol"]["scales"] == InferenceProtocol.load(name).scales


TOGETHER = """
import json
import torch
from tests.support.competing_models import competing_model
from ddsm_zoo import evaluate
from ddsm_zoo.inference import precision
from ddsm_zoo.utils.distributed import init_distributed, rank

precision.AGREEMENT, precision.has_bf16 = 0, lambda device: True
found = []
with init_distributed():
    for gains in ((2.0, 2.0), (2.0, 0.5), (0.5, 2.0)):
        precision.compare_speed = lambda full, half, device: gains[rank()]
        scores = evaluate(competing_model(3), "scenes:3", precision="auto")
        found.append((scores.get("precision", "fp32"), scores["miou"]))
print(json.dumps(found))
"""


def test_processes_agree_on_a_precision() -> None:
    """The third image is in the first process alone, and a machine may be slow in one process."""
    first, second = (json.loads(output) for output in run_together(["-c", TOGETHER], ROOT))
    assert first == second
    assert [chosen for chosen, _ in first] == ["bf16", "fp32", "fp32"]
    assert first[1] == first[2]
    alone = evaluate(competing_model(3), "scenes:3")
    assert first[1][1] == pytest.approx(alone["miou"], abs=1e-3)
