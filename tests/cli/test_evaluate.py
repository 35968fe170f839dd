"""The command ``evaluate``: what it prints and writes, and one line for whatever cannot be."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddsm_zoo
from ddsm_zoo.labels import CAMVID, CITYSCAPES
from tests.support.cityscapes_root import official, write_root
from tests.support.command_line import run_command
from tests.support.together import run_together

Run = Callable[..., Any]
SIZE = (24, 32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Addresses of two saved models of CamVid's classes with random weights of which no class wins everywhere."""
    addresses = []
    for seed in (3, 4):
        folder = tmp_path_factory.mktemp("model")
        torch.manual_seed(seed)
        model = ddsm_zoo.create_model("uper_tiny", num_classes=len(CAMVID))
        with torch.no_grad():
            model.classifier.weight *= 30
        model.provenance = dataclasses.replace(model.provenance, labels=CAMVID)
        ddsm_zoo.save_pretrained(model, folder)
        addresses.append(f"local-dir:{folder}")
    return addresses


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call ``evaluate`` in a folder with a data set ``data``."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    return partial(run_command, "evaluate")


def write_data(root: Path) -> None:
    """Four images of CamVid's classes in blocks; the last two classes occur nowhere."""
    generator = np.random.default_rng(0)
    for kind in ("val", "valannot"):
        (root / kind).mkdir(parents=True)
    for index in range(4):
        mask = np.kron(generator.integers(0, 9, (3, 4)), np.ones((8, 8))).astype(np.uint8)
        mask[:2] = 11
        Image.fromarray(generator.integers(0, 256, (*SIZE, 3)).astype(np.uint8)).save(root / "val" / f"{index}.png")
        Image.fromarray(mask).save(root / "valannot" / f"{index}.png")


def predict_perfectly(folder: Path) -> None:
    folder.mkdir()
    for index in range(4):
        mask = np.array(Image.open(f"data/valannot/{index}.png"))
        Image.fromarray(np.where(mask == 11, 0, mask).astype(np.uint8)).save(folder / f"{index}_ids.png")


def test_json_has_all_that_was_asked_for(run: Run, models: list[str]) -> None:
    data = ("--data", "camvid:data", "--json", "-")
    figures = json.loads(run("--model", models[0], *data, "--boundary", "--bootstrap", "20").stdout)
    keys = {"0.00088", "0.001875", "0.00375", "0.005"}
    assert set(figures["boundary_f"]) == keys | {"mean", "present_only"}
    assert set(figures["boundary_f"]["present_only"]) == keys | {"mean"}
    assert figures["boundary_f_pixels"] == {key: [1] for key in keys}
    assert figures["protocol"]["name"] == "whole"
    assert 0 <= figures["boundary_iou"] <= 1
    assert figures["count"] == 4
    assert figures["intervals"]["miou"][0] <= figures["miou"] <= figures["intervals"]["miou"][1]
    plain = json.loads(run("--model", models[0], *data).stdout)
    assert plain["miou"] == figures["miou"]
    assert "boundary_f" not in plain


def test_table_pictures_and_scores_in_a_folder(run: Run, models: list[str]) -> None:
    data = ("--data", "camvid:data", "--boundary", "--bootstrap", "9")
    at = "boundary F at 1 px (0.005 diag.)"
    result = run("--model", models[0], *data, "--out", "report", "--worst", "2")
    for word in (*CAMVID.names, "mIoU", "95 %", at, "Boundary IoU", "pictures in report"):
        assert word in result.stdout
    assert re.search(r" on camvid:data val, 4 images in \d+\.\d s\n", result.stdout)
    figures = json.loads(Path("report/scores.json").read_text())
    worst = [f"worst_0{rank}_{entry['name']}.png" for rank, entry in enumerate(figures["worst"], start=1)]
    assert sorted(path.name for path in Path("report").iterdir()) == ["confusion.png", "scores.json", *worst]
    assert figures["worst"][0]["miou"] <= figures["worst"][1]["miou"]


def test_radii_in_pixels(run: Run, models: list[str]) -> None:
    options = ("--data", "camvid:data", "--boundary", "--boundary-radii", "2, 12", "--json", "scores.json")
    assert "boundary F at 12 px " in run("--model", models[0], *options).stdout
    figures = json.loads(Path("scores.json").read_text())
    assert set(figures["boundary_f"]) == {"2", "12", "mean", "present_only"}
    assert figures["protocol"]["radii"] == [2, 12]


def rename_frames(names: list[str]) -> None:
    """Name the four images of the data set."""
    for folder in ("val", "valannot"):
        for index, name in enumerate(names):
            Path(f"data/{folder}/{index}.png").rename(f"data/{folder}/{name}.png")


def test_intervals_over_sequences_and_blocks_of_video_frames(run: Run, models: list[str]) -> None:
    rename_frames(["0001TP_006690", "0001TP_006720", "0016E5_07959", "0016E5_07961"])
    data = ("--model", models[0], "--data", "camvid:data", "--bootstrap", "20", "--json", "scores.json")
    notes = {
        ("image", 4): "4 images are too narrow: by their names, 4 are frames of 2 sequences",
        ("sequence", 2): "over 2 sequences: valid for video frames; only 2, so they are rough",
        ("block:1", 4): "over 4 blocks of up to 1 consecutive images",
    }
    for (by, units), note in notes.items():
        printed = run(*data, "--bootstrap-by", by).stdout
        intervals = json.loads(Path("scores.json").read_text())["intervals"]
        assert note in printed
        assert note in intervals["note"]
        assert (intervals["by"], intervals["units"], intervals["draws"]) == (by, units, 20)
    compared = run("--compare", *models, "--data", "camvid:data", "--bootstrap", "9", "--bootstrap-by", "sequence")
    assert notes["sequence", 2] in compared.stdout


def test_one_sequence_cannot_be_resampled(run: Run) -> None:
    """The data are looked at before the model: the error comes at once."""
    data = ("--model", "not_a_model", "--data", "camvid:data", "--bootstrap", "20", "--bootstrap-by")
    assert "no sequence in the name of 4 of 4 images, first '0'" in run(*data, "sequence", fails=1).stderr
    rename_frames([f"0016E5_{index}" for index in range(4)])
    assert "the 4 images are one sequence, expected at least two" in run(*data, "sequence", fails=1).stderr
    assert "block:4 puts all 4 images into one block" in run(*data, "block:4", fails=1).stderr


def test_compare_two_models(run: Run, models: list[str]) -> None:
    result = run(
        "--compare", *models, "--data", "camvid:data", "--boundary", "--bootstrap", "20", "--json", "gain.json"
    )
    assert "B - A" in result.stdout
    for word in ("mIoU", "boundary F mean", "boundary F mean, present only", "Boundary IoU"):
        assert word in result.stdout
    figures = json.loads(Path("gain.json").read_text())
    assert [figures[side]["model"] for side in "ab"] == models
    gain = figures["gain"]
    assert gain["miou"] == pytest.approx(figures["b"]["miou"] - figures["a"]["miou"])
    assert gain["intervals"]["miou"][0] <= gain["miou"] <= gain["intervals"]["miou"][1]
    assert set(gain["iou"]) == set(gain["intervals"]["iou"]) == set(CAMVID.names)


def test_predictions_in_a_folder_and_classes_that_never_occur(run: Run, tmp_path: Path) -> None:
    predict_perfectly(tmp_path / "mine")
    result = run("--predictions", "mine", "--data", "camvid:data", "--json", "scores.json")
    figures = json.loads(Path("scores.json").read_text())
    assert figures["miou"] == 1.0
    assert figures["iou"]["Bicyclist"] is None
    assert figures["never_occurs"] == ["Pedestrian", "Bicyclist"]
    assert "never occurred, left out of the mean: Pedestrian, Bicyclist" in result.stdout
    assert figures["predictions"] == {"folder": "mine", "class_ids": False}


def test_predictions_of_a_model_score_as_the_model(run: Run, models: list[str]) -> None:
    run_command("predict", "data/val", "-m", models[0], "-o", "mine")
    source = {"model": ["--model", models[0]], "folder": ["--predictions", "mine"]}
    scores = {
        name: json.loads(run(*options, "--data", "camvid:data", "--boundary", "--json", "-").stdout)
        for name, options in source.items()
    }
    assert scores["folder"]["confusion"] == scores["model"]["confusion"]
    assert scores["folder"]["boundary_f"] == scores["model"]["boundary_f"]


def save_cityscapes_model(folder: Path) -> None:
    torch.manual_seed(0)
    model = ddsm_zoo.create_model("uper_tiny", num_classes=len(CITYSCAPES))
    model.provenance = dataclasses.replace(model.provenance, labels=CITYSCAPES)
    ddsm_zoo.save_pretrained(model, folder)


CITIES = [f"bonn_00000{index}_000019" for index in range(3)]


@pytest.mark.parametrize("published", ["no masks", "void masks"])
def test_submission_of_a_split_whose_labels_nobody_has(run: Run, tmp_path: Path, published: str) -> None:
    """The benchmark publishes void masks for it; nothing is scored then, with boundaries or without."""
    save_cityscapes_model(tmp_path / "model")
    for file in write_root(tmp_path / "city", CITIES, "test", masks=published == "void masks"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(file)))).save(file)
    arguments = ["--model", "local-dir:model", "--split", "test", "--submission", "upload"]
    reported = ["--boundary", "--bootstrap", "5", "--out", "report", "--worst", "2", "--json", "scores.json"]
    output = run(*arguments, *reported, "--data", "cityscapes:city").stdout
    assert "without labels there is nothing to score" in output
    assert "label ids in upload" in output
    assert "IoU" not in output
    assert sorted(path.name for path in Path("upload").iterdir()) == [f"{name}_labelIds.png" for name in CITIES]
    assert [path.name for path in Path("report").iterdir()] == ["scores.json"]
    figures = json.loads(Path("scores.json").read_text())
    assert (figures["count"], figures["split"], figures["worst"]) == (3, "test", [])
    assert not {"miou", "iou", "boundary_f", "boundary_iou", "intervals", "iiou"} & set(figures)
    assert "expected cityscapes:ROOT" in run(*arguments, "--data", "camvid:data", fails=1).stderr


def test_two_processes_report_as_one(run: Run, tmp_path: Path) -> None:
    """With objects, whose weights are floats: their sums depend on the order unless it is kept."""
    save_cityscapes_model(tmp_path / "model")
    write_root(tmp_path / "city", CITIES)
    arguments = ["--model", "local-dir:model", "--data", "cityscapes:city", "--boundary", "--bootstrap", "5"]
    arguments += ["--batch-size", "2"]
    run_together(["-m", "ddsm_zoo", "evaluate", *arguments, "--submission", "both", "--json", "both.json"], tmp_path)
    run(*arguments, "--submission", "one", "--json", "one.json")
    both, one = (json.loads(Path(f"{name}.json").read_text()) for name in ("both", "one"))
    assert both == one
    assert one["mean_iiou"] >= 0
    written = [{path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("both", "one")]
    assert written[0] == written[1]
    assert len(written[0]) == 3


def test_class_ids_where_masks_hold_something_else(run: Run, tmp_path: Path) -> None:
    """Train ids, as other tools and `ddsm-zoo predict` write them, for Cityscapes' label ids and CamVid's colors."""
    (tmp_path / "mine").mkdir()
    known = {label.id: label.trainId for label in official.labels if label.trainId in range(19)}
    for file in write_root(tmp_path / "city", CITIES):
        ids = np.array([known.get(value, 0) for value in range(256)], np.uint8)[np.asarray(Image.open(file))]
        Image.fromarray(ids).save(tmp_path / "mine" / file.name.replace("gtFine_labelIds", "leftImg8bit"))
    options = ["--predictions", "mine", "--data", "cityscapes:city"]
    figures = json.loads(run(*options, "--class-ids", "--json", "-").stdout)
    assert figures["miou"] == 1.0
    assert figures["predictions"] == {"folder": "mine", "class_ids": True}
    said = run(*options, fails=1).stderr
    assert "expected a class where labeled; are these class ids? --class-ids reads them" in said
    assert "the predictions are read as the masks are: 7 = road, 8 = sidewalk" in said

    predict_perfectly(tmp_path / "yours")
    for index in range(4):
        ids = np.asarray(Image.open(f"data/valannot/{index}.png"))
        Path("data/val_labels").mkdir(exist_ok=True)
        colors = np.array([*CAMVID.palette, (0, 0, 0)], np.uint8)
        Image.fromarray(colors[ids]).save(f"data/val_labels/{index}_L.png")
    shutil.rmtree("data/valannot")
    options = ["--predictions", "yours", "--data", "camvid:data"]
    assert json.loads(run(*options, "--class-ids", "--json", "-").stdout)["miou"] == 1.0
    assert "single-channel ids, expected RGB colors; are these class ids?" in run(*options, fails=1).stderr


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda mine: (mine / "2_ids.png").unlink(), "no prediction for 1 of 4 images, first 2"),
        (lambda mine: Image.new("L", (4, 4)).save(mine / "9.png"), "no image for 1 of its files, first 9.png"),
        (lambda mine: (mine / "2_ids.png").rename(mine / "2ids.png"), "no image for 1 of its files, first 2ids.png"),
        (lambda mine: Image.new("L", (4, 4)).save(mine / "2_ids.png"), "2_ids.png is 4 x 4 pixels, expected 32 x 24"),
        (lambda mine: Image.new("L", (32, 24), 11).save(mine / "2_ids.png"), "2_ids.png is void at row 2, column 0"),
        (lambda mine: Image.new("L", (32, 24), 99).save(mine / "2_ids.png"), "2_ids.png holds id 99"),
        (lambda mine: (mine / "2_ids.png").write_text("no image"), "2_ids.png is no image"),
    ],
)
def test_folders_of_predictions_that_do_not_fit(
    run: Run, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    predict_perfectly(tmp_path / "mine")
    spoil(tmp_path / "mine")
    assert message in run("--predictions", "mine", "--data", "camvid:data", fails=1).stderr


def test_labels_that_are_all_void(run: Run, models: list[str]) -> None:
    for index in range(4):
        Image.new("L", SIZE[::-1], 11).save(f"data/valannot/{index}.png")
    result = run("--model", models[0], "--data", "camvid:data", fails=1)
    assert "camvid:data cannot be used: val: no pixel of any class in 4 of 4 masks" in result.stderr


def test_a_model_that_gives_nan(run: Run, tmp_path: Path) -> None:
    """Its weights are finite; a negative variance has no root."""
    model = ddsm_zoo.create_model("uper_tiny", num_classes=len(CAMVID))
    variances = [tensor for name, tensor in model.named_buffers() if name.endswith("running_var")]
    variances[-1].fill_(-1.0)
    model.provenance = dataclasses.replace(model.provenance, labels=CAMVID)
    ddsm_zoo.save_pretrained(model, tmp_path / "broken")
    assert "NaN on image 0" in run("--model", "local-dir:broken", "--data", "camvid:data", fails=1).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected exactly one of --model NAME, --compare A B and --predictions DIR"),
        (["--model", "x", "--predictions", "y"], "expected exactly one of"),
        (["--model", "x", "--worst", "3"], "expected --out DIR"),
        (["--model", "x", "--bootstrap-by", "sequence"], "expected --bootstrap K or --compare with it"),
        (
            ["--model", "x", "--bootstrap", "9", "--bootstrap-by", "clip"],
            "cannot resample by 'clip', expected image, seq",
        ),
        (["--model", "x", "--class-ids"], "expected --predictions DIR"),
        (["--compare", "x", "y", "--out", "z"], "--out is for one evaluation"),
        (["--predictions", "x", "--submission", "z"], "--submission for one --model"),
        (["--model", "x", "--boundary-radii", "1,2"], "expected boundary=True (--boundary) too"),
        (["--model", "x", "--boundary", "--boundary-radii", "0.005"], "is '0.005', expected whole numbers of pixels"),
        (["--model", "x", "--boundary", "--boundary-radii", "1,,2"], "expected whole numbers of pixels such as 1,2,3"),
        (["--model", "x", "--boundary", "--boundary-radii", "2,2"], "expected each of them once"),
        (["--model", "x", "--protocol", "whale"], "no protocol 'whale', expected whole, flip"),
        (["--model", "x", "--split", "tset"], "no images for the split 'tset'"),
        (["--predictions", "nowhere"], "nowhere is no folder"),
        (["--predictions", "x", "--protocol", "flip"], "expected --predictions DIR without it"),
        (["--model", "x", "--out", "/dev/null/x"], "cannot write"),
        (["--model", "uper_tiny"], "without task weights"),
    ],
)
def test_what_cannot_be(run: Run, options: list[str], message: str) -> None:
    assert message in run(*options, "--data", "camvid:data", fails=1).stderr
