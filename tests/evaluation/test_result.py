"""Results of evaluations: intervals, gains of one model over another, and pictures of the worst images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo import evaluate
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.evaluation.evaluate import Request, score_model
from ddsm_zoo.evaluation.result import Evaluation
from ddsm_zoo.labels import CAMVID
from ddsm_zoo.metrics import ConfusionMatrix
from ddsm_zoo.models import Segmenter
from tests.support.competing_models import competing_model
from tests.support.errors import raises


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return competing_model(3)


@pytest.fixture(scope="module")
def two() -> tuple[Evaluation, Evaluation]:
    request = Request(data="scenes:3", boundary=True)
    return score_model(competing_model(3), request), score_model(competing_model(4), request)


def test_intervals_hold_the_score_and_repeat(two: tuple[Evaluation, Evaluation]) -> None:
    figures = two[0].figures(200)
    intervals = figures["intervals"]
    for key in ("miou", "boundary_iou"):
        low, high = intervals[key]
        assert low <= figures[key] <= high
    low, high = intervals["boundary_f"]
    assert low <= figures["boundary_f"]["mean"] <= high
    assert tuple(intervals["iou"]) == CAMVID.names
    assert (intervals["draws"], intervals["level"]) == (200, 0.95)
    assert two[0].figures(200)["intervals"] == intervals


def test_intervals_say_what_they_are_over(two: tuple[Evaluation, Evaluation]) -> None:
    by_image = two[0].figures(50)["intervals"]
    assert (by_image["by"], by_image["units"]) == ("image", 3)
    assert "each from its own sequence" in by_image["note"]
    blocks = evaluate(competing_model(3), "scenes:3", boundary=True, bootstrap=50, bootstrap_by="block:1")["intervals"]
    assert (blocks["by"], blocks["units"]) == ("block:1", 3)
    assert blocks["iou"] == by_image["iou"]


def test_the_gain_is_the_difference_and_is_paired(two: tuple[Evaluation, Evaluation]) -> None:
    first, second = two
    gain = second.gain_over(first, 200)
    scores = first.figures(), second.figures()
    assert gain["miou"] == pytest.approx(scores[1]["miou"] - scores[0]["miou"])
    for name in CAMVID.names:
        assert gain["iou"][name] == pytest.approx(scores[1]["iou"][name] - scores[0]["iou"][name], nan_ok=True)
    low, high = gain["intervals"]["miou"]
    assert low <= gain["miou"] <= high
    itself = first.gain_over(first, 50)
    assert itself["intervals"]["miou"] == [0.0, 0.0]  # the same images are drawn for both


def test_a_gain_needs_the_same_images(two: tuple[Evaluation, Evaluation], model: Segmenter) -> None:
    with raises(ValueError, kind="argument", name="dataset"):
        two[0].gain_over(score_model(model, Request(data="scenes:2", boundary=True)), 10)


def test_a_gain_needs_the_same_boundary_measures(two: tuple[Evaluation, Evaluation], model: Segmenter) -> None:
    request = Request(data="scenes:3", boundary=True, boundary_radii=(3, 5, 9, 12))
    for other in (score_model(model, request), score_model(model, Request(data="scenes:3"))):
        with raises(ValueError, kind="argument", name="boundary"):
            two[0].gain_over(other, 10)


def test_the_worst_images_and_their_pictures(two: tuple[Evaluation, Evaluation], tmp_path: Path) -> None:
    evaluation = two[0]
    worst = evaluation.worst(3)
    alone = []
    for index in range(3):
        confusion = ConfusionMatrix(len(CAMVID))
        confusion.update(evaluation.again(index).ids, evaluation.again(index).target)
        alone.append(confusion.compute()["miou"])
    assert [entry["miou"] for entry in worst] == pytest.approx(sorted(alone))
    assert [entry["index"] for entry in worst] == np.argsort(alone).tolist()
    evaluation.write_pictures(tmp_path, 2)
    names = {"confusion.png", *(f"worst_{rank:02d}_{worst[rank - 1]['name']}.png" for rank in (1, 2))}
    assert {path.name for path in tmp_path.iterdir()} == names
    with Image.open(tmp_path / f"worst_01_{worst[0]['name']}.png") as sheet:
        captions = sheet.height - 720
        shown = np.asarray(sheet)[captions // 2 : captions // 2 + 360, :480]
    assert np.array_equal(shown, render_scene(1_000_000_000 + worst[0]["index"])[0])
