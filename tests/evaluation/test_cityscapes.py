"""The benchmark's own scripts must give our numbers, on predictions that we wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo.data.cityscapes import CATEGORIES, MEAN_OBJECT_SIZES, write_label_ids
from ddsm_zoo.data.datasets import DatasetError, open_dataset
from ddsm_zoo.evaluation.evaluate import Request, score_model, score_predictions
from ddsm_zoo.labels import CITYSCAPES
from ddsm_zoo.models import Segmenter
from tests.support.cityscapes_root import HEIGHT, WIDTH, official, official_scores, write_root
from tests.support.errors import raises

NAMES = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_root(tmp_path / "data", NAMES)
    return tmp_path / "data"


@pytest.fixture
def model() -> Segmenter:
    """Random weights whose classes compete: the classifier's are enlarged."""
    torch.manual_seed(3)
    model = ddsm_zoo.create_model("uper_tiny", num_classes=19)
    with torch.no_grad():
        model.classifier.weight *= 30
    return model


def label_files(root: Path, split: str = "val") -> list[Path]:
    return sorted(root.glob(f"gtFine/{split}/*/*_labelIds.png"))


def assert_agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Every number of theirs, to 1e-9; nan is nan."""
    tables = {
        "iou": "classScores",
        "iiou": "classInstScores",
        "category_iou": "categoryScores",
        "category_iiou": "categoryInstScores",
    }
    for key, name in tables.items():
        left_out = {label for label, value in theirs[name].items() if label not in ours[key]}
        assert all(math.isnan(theirs[name][label]) for label in left_out), name
        for label, value in ours[key].items():
            np.testing.assert_allclose(value, theirs[name][label], rtol=0, atol=1e-9, err_msg=f"{key} {label}")
    means = {
        "miou": "averageScoreClasses",
        "mean_iiou": "averageScoreInstClasses",
        "mean_category_iou": "averageScoreCategories",
        "mean_category_iiou": "averageScoreInstCategories",
    }
    for key, name in means.items():
        assert ours[key] == pytest.approx(theirs[name], abs=1e-9), key


def test_predictions_of_every_kind(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels with a third of the pixels changed; walls are labeled and never predicted, trains occur nowhere."""
    generator = np.random.default_rng(0)
    dataset = open_dataset(f"cityscapes:{root}", "val")
    for index, pair in enumerate(dataset.pairs):
        mask = dataset.load(index)[1].numpy()
        others = generator.choice([label for label in range(19) if label not in (3, 16)], mask.shape)
        changed = np.where((mask == 255) | (generator.random(mask.shape) < 1 / 3) | (mask == 3), others, mask)
        write_label_ids(tmp_path / "predictions", pair.name, torch.from_numpy(changed))
    ours = score_predictions(tmp_path / "predictions", Request(data=f"cityscapes:{root}")).figures()
    theirs = official_scores(label_files(root), tmp_path / "predictions", monkeypatch)
    assert_agreement(ours, theirs)
    assert 0.2 < ours["miou"] < 0.9
    assert ours["never_occurs"] == ["train"]
    assert 0 < ours["mean_iiou"] < 1


def test_an_exported_val_split_scores_the_same_at_the_official_evaluator(
    root: Path, model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = tmp_path / "upload"
    ours = score_model(model, Request(data=f"cityscapes:{root}"), submission=upload).figures()
    assert_agreement(ours, official_scores(label_files(root), upload, monkeypatch))
    written = sorted(upload.iterdir())
    assert [path.name for path in written] == [f"{name}_labelIds.png" for name in NAMES]
    ids = {int(value) for path in written for value in np.unique(np.asarray(Image.open(path)))}
    assert len(ids) > 3
    assert ids <= {label.id for label in official.labels if label.trainId in range(19)}
    assert np.asarray(Image.open(written[0])).shape == (HEIGHT, WIDTH)
    again = score_predictions(upload, Request(data=f"cityscapes:{root}")).figures()
    assert again["confusion"] == ours["confusion"]


def test_a_split_without_labels_is_exported_and_not_scored(tmp_path: Path, model: Segmenter) -> None:
    write_root(tmp_path, NAMES[:1], "test", masks=False)
    request = Request(data=f"cityscapes:{tmp_path}", split="test")
    result = score_model(model, request, submission=tmp_path / "upload").figures()
    assert result["count"] == 1
    assert "miou" not in result
    assert [path.name for path in (tmp_path / "upload").iterdir()] == [f"{NAMES[0]}_labelIds.png"]
    with raises(DatasetError, kind="missing-mask"):
        score_model(model, request)


def test_without_object_files_there_is_no_iiou(root: Path, model: Segmenter) -> None:
    next(root.glob("gtFine/val/*/*_instanceIds.png")).unlink()
    figures = score_model(model, Request(data=f"cityscapes:{root}")).figures()
    assert "iiou" not in figures
    assert "category_iou" in figures


def test_an_object_file_of_another_size(root: Path, model: Segmenter) -> None:
    Image.new("I;16", (3, 2)).save(next(root.glob("gtFine/val/*/*_instanceIds.png")))
    with raises(DatasetError, kind="size-mismatch", path="aachen_000001_000019_gtFine_instanceIds.png"):
        score_model(model, Request(data=f"cityscapes:{root}"))


def test_only_cityscapes_has_a_server(model: Segmenter, tmp_path: Path) -> None:
    with raises(DatasetError, kind="options", got="scenes:1", expected="cityscapes:ROOT"):
        score_model(model, Request(data="scenes:1"), submission=tmp_path)


def test_tables_are_the_benchmarks() -> None:
    known = {label.trainId: label for label in official.labels if 0 <= label.trainId < 19}
    assert [known[index].name for index in range(19)] == list(CITYSCAPES.names)
    for index, label in known.items():
        assert index in CATEGORIES[label.category]
        assert label.hasInstances == (index in MEAN_OBJECT_SIZES)
        if label.hasInstances:
            assert MEAN_OBJECT_SIZES[index] == official.args.avgClassSize[label.name]
