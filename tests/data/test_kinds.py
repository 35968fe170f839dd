"""Kinds of data sets that users register work by name: checked, trained, scored, and refused in one line if unknown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ddsm_zoo
from ddsm_zoo.cli.app import DATA_KINDS as HELP
from ddsm_zoo.data.check.report import check_data, require_sound
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.kinds import DATASET_KINDS, DatasetKind, known_specs
from ddsm_zoo.data.layouts import Layout, SplitFiles, existing_folder
from ddsm_zoo.data.masks import MaskDecoder
from ddsm_zoo.data.pairs import Pair, SegmentationDataset, Transform
from ddsm_zoo.data.splits import open_training_sets, training_splits
from ddsm_zoo.evaluation.evaluate import Request, score_model, score_predictions
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.training.recipe import Recipe
from tests.support.data_sets import IMAGE, expect_one_line, write

LABELS = LabelSpace.from_names(("soil", "crop"))
STORED = np.where(np.indices(IMAGE.shape[:2]).sum(0) % 3, 40, 7).astype(np.uint8)  # 40 is crop, 7 is soil
RECIPE = Recipe(model="uper_tiny", epochs=1, batch_size=2, crop_size=(32, 32), workers=0)


def field_layout(root: str) -> Layout:
    """``SPLIT/NAME-photo.png`` beside ``SPLIT/NAME-crops.png``."""
    folder = existing_folder(root)

    def find(split: str) -> SplitFiles:
        images, masks = (
            {file.stem.removesuffix(end): file for file in sorted((folder / split).glob(f"*{end}.png"))}
            for end in ("-photo", "-crops")
        )
        return SplitFiles(images, masks, f"{split}/NAME-crops.png", MaskDecoder(ids={7: 0, 40: 1}))

    return Layout(root=folder, labels=LABELS, find=find, shape="SPLIT/NAME-photo.png and SPLIT/NAME-crops.png")


class CropArea:
    """The share of the images' area that was predicted as crop."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.crop = torch.zeros(len(dataset), 2)

    def add(self, index: int, ids: Tensor, target: Tensor) -> None:
        self.crop[index] = torch.tensor([int((ids == 1).sum()), target.numel()])

    def compute(self, confusion: Tensor) -> dict[str, Any]:
        crop, pixels = self.crop.sum(0).tolist()
        return {"crop_area": crop / pixels, "labeled_crop": {"pixels": int(confusion[1].sum())}}


def write_ids(folder: Path, name: str, ids: Tensor) -> None:
    write(folder / f"{name}.png", ids.numpy().astype(np.uint8))


FIELD = DatasetKind(
    open=field_layout,
    sequence_of=lambda name: name[0],
    extra_scores=CropArea,
    write_submission=write_ids,
)


class Stripes(SegmentationDataset):
    """Gray images whose left half, as wide as the item's name says, is crop."""

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        mask = (torch.arange(8) < int(self.pairs[index].name)).long().expand(6, 8)
        return (mask * 200).to(torch.uint8).expand(3, 6, 8), mask


class Generated:
    """Stripes in the split train alone."""

    labels = LABELS

    def __init__(self, count: str) -> None:
        self.count = int(count)

    def splits(self) -> list[str]:
        return ["train"]

    def open(self, split: str, transform: Transform | None = None, seed: int = 0) -> Stripes:
        pairs = [Pair(Path("none"), Path("none"), str(number)) for number in range(self.count)]
        return Stripes(pairs, LABELS, MaskDecoder(), transform, seed)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds that are gone after the test."""
    monkeypatch.setattr(DATASET_KINDS, "_known", dict(DATASET_KINDS))
    ddsm_zoo.register_dataset("field", FIELD)
    ddsm_zoo.register_dataset("stripes", DatasetKind(open=Generated, metavar="N"))


@pytest.fixture
def field(tmp_path: Path) -> Path:
    root = tmp_path / "field"
    for number, name in enumerate(("a1", "a2", "b1", "c1", "c2", "d1")):
        split = "train" if number < 3 else "val"
        write(root / split / f"{name}-photo.png", np.roll(IMAGE, number, 0))
        write(root / split / f"{name}-crops.png", STORED)
    return root


def model_of(summary: dict[str, Any]) -> str:
    return f"local-dir:{Path(summary['best']).parent}"


@pytest.mark.usefixtures("registered")
def test_a_registered_kind_is_checked_trained_and_scored(field: Path, tmp_path: Path) -> None:
    spec = f"field:{field}"
    report = check_data(spec)
    assert not report.problems
    crops = int((STORED == 40).sum())
    assert report.splits["train"].pixels == (3 * (STORED.size - crops), 3 * crops)
    summary = ddsm_zoo.train(RECIPE, spec, tmp_path / "run", pretrained=False)
    figures = ddsm_zoo.evaluate(model_of(summary), spec, bootstrap=5, bootstrap_by="sequence")
    assert tuple(figures["iou"]) == LABELS.names
    assert figures["intervals"]["units"] == 2  # c and d
    assert figures["crop_area"] == sum(row[1] for row in figures["confusion"]) / (3 * STORED.size)
    assert figures["labeled_crop"] == {"pixels": 3 * crops}


@pytest.mark.usefixtures("registered")
def test_the_check_finds_what_is_wrong_with_a_registered_kind(field: Path) -> None:
    write(field / "train/a1-crops.png", np.where(STORED == 7, 9, 40).astype(np.uint8))
    (field / "val/c1-crops.png").unlink()
    kinds = {problem.kind: str(problem) for problem in check_data(f"field:{field}").errors}
    assert set(kinds) == {"unknown-id", "missing-mask"}
    assert "train/a1-crops.png (9 on" in kinds["unknown-id"]
    assert "expected val/NAME-crops.png: val/c1-photo.png" in kinds["missing-mask"]


@pytest.mark.usefixtures("registered")
def test_predictions_and_submissions_of_a_registered_kind(field: Path, tmp_path: Path) -> None:
    for name in ("c1", "c2", "d1"):
        write(tmp_path / "mine" / f"{name}.png", STORED)
    scores = score_predictions(tmp_path / "mine", Request(data=f"field:{field}")).figures()
    assert (scores["miou"], scores["crop_area"]) == (1, float((STORED == 40).mean()))
    for mask in (field / "val").glob("*-crops.png"):
        mask.unlink()  # the server has them
    model = ddsm_zoo.create_model("uper_tiny", labels=LABELS)
    score_model(model, Request(data=f"field:{field}"), submission=tmp_path / "upload")
    assert sorted(path.name for path in (tmp_path / "upload").iterdir()) == ["c1.png", "c2.png", "d1.png"]
    expect_one_line(
        lambda: score_model(model, Request(data="scenes:1"), submission=tmp_path / "upload"),
        "expected cityscapes:ROOT or field:ROOT, got scenes:1",
    )


@pytest.mark.usefixtures("registered")
def test_generated_data_trains_unchecked_and_holds_out_a_part(tmp_path: Path) -> None:
    assert require_sound("stripes:5", ("train",)) is None
    assert training_splits("stripes:5") == ("train",)
    expect_one_line(lambda: check_data("stripes:5"), "stripes:5", "nothing to check")
    train_set, val_set, kept = open_training_sets("stripes:5", 0.4, lambda *item: item, lambda *item: item, seed=0)
    widths = [int(part[index][1][0].sum()) for part in (train_set, val_set) for index in range(len(part))]
    assert (len(val_set), sorted(widths)) == (2, [0, 1, 2, 3, 4])
    assert widths[:3] == kept
    summary = ddsm_zoo.train(RECIPE, "stripes:5", tmp_path, pretrained=False)
    assert ddsm_zoo.evaluate(model_of(summary), "stripes:5", "train")["count"] == 5


@pytest.mark.usefixtures("registered")
def test_an_unknown_kind_names_the_registered_ones() -> None:
    expected = "expected camvid:ROOT, cityscapes:ROOT, folder:ROOT, scenes:N, field:ROOT or stripes:N"
    expect_one_line(lambda: open_dataset("mine:here", "train"), "'mine:here' is unknown", expected, "--plugin MODULE")
    expect_one_line(lambda: check_data("fields:here"), expected, "did you mean field:ROOT?")


def test_help_names_the_kinds_of_the_package() -> None:
    """It is written before any plugin is imported."""
    assert known_specs().replace(" or ", ", ") == HELP.removesuffix(" or your own kind (--plugin)")


@pytest.mark.parametrize("name", ["", "Mine", "my-data", "1st", "camvid"])
def test_names_that_cannot_be_registered(name: str) -> None:
    expect_one_line(lambda: ddsm_zoo.register_dataset(name, FIELD), "kind of data set", kind=ValueError)


def test_what_is_registered_is_a_kind() -> None:
    expect_one_line(lambda: ddsm_zoo.register_dataset("mine", field_layout), "DatasetKind(open=...)", kind=TypeError)  # type: ignore[arg-type]  # what a user may give


@pytest.mark.usefixtures("registered")
def test_masks_of_more_classes_than_there_are(field: Path) -> None:
    layout = field_layout(str(field))
    images = layout.files("train").images

    def find(_split: str) -> SplitFiles:
        return SplitFiles(images, images, "", MaskDecoder(ids={7: 0, 40: 2}))

    wrong = Layout(root=field, labels=LABELS, find=find, shape="")
    expect_one_line(lambda: wrong.open("train"), "class id 2, expected 0 to 1 for the 2 classes or the ignored 255")


class Miou(CropArea):
    def compute(self, confusion: Tensor) -> dict[str, Any]:
        return {"miou": 1.0}


@pytest.mark.usefixtures("registered")
def test_extra_scores_replace_no_other(field: Path, tmp_path: Path) -> None:
    ddsm_zoo.register_dataset("sure", DatasetKind(open=field_layout, extra_scores=Miou))
    for name in ("c1", "c2", "d1"):
        write(tmp_path / f"mine/{name}.png", STORED)
    scored = score_predictions(tmp_path / "mine", Request(data=f"sure:{field}"))
    expect_one_line(scored.figures, "['miou']", "rename", kind=ValueError)


PLUGIN = """
import ddsm_zoo
from tests.data.test_kinds import FIELD

ddsm_zoo.register_dataset("mine", FIELD)
"""


def command_line(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddsm_zoo", *arguments]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_command_line_takes_a_kind_of_a_plugin(field: Path, tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text(PLUGIN)
    (tmp_path / "short.toml").write_text(
        'model = "uper_tiny"\nepochs = 1\nbatch_size = 2\ncrop_size = [32, 32]\nworkers = 0\n'
    )
    checked = command_line(tmp_path, "--plugin", "kinds", "check-data", "mine:field")
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "mine:field has no problems"), checked.stderr
    train = ("train", "-r", "short.toml", "-d", "mine:field", "-o", "run", "--no-pretrained")
    trained = command_line(tmp_path, "--plugin", "kinds", *train)
    assert trained.returncode == 0, trained.stderr
    evaluate = ("evaluate", "-m", "local-dir:run/best", "-d", "mine:field", "--json", "scores.json")
    scored = command_line(tmp_path, "--plugin", "kinds", *evaluate)
    assert scored.returncode == 0, scored.stderr
    assert "crop area" in scored.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["data"] == "mine:field"
    unknown = command_line(tmp_path, "check-data", "mine:field")
    assert (unknown.returncode, len(unknown.stderr.strip().splitlines())) == (2, 1), unknown.stderr
    assert "--plugin MODULE" in unknown.stderr


@pytest.mark.parametrize("spec", ["folder:", "scenes:"])
def test_a_kind_without_a_place(spec: str) -> None:
    expect_one_line(lambda: open_dataset(spec, "train"), f"names nothing after the colon, expected {spec}")
