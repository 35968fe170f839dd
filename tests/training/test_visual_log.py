"""What a run shows of itself: the pixels of the pictures, the points of the curve, the events of TensorBoard."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddsm_zoo.data.datasets import SegmentationDataset, open_dataset
from ddsm_zoo.labels import LabelSpace
from ddsm_zoo.training.visual_log import VisualLog, draw_curve, sample_sheet
from tests.support.data_sets import write, write_labels
from tests.support.errors import raises

LABELS = LabelSpace.from_names(["road", "car", "sky"])
ENTRY = {"epoch": 3, "loss": 0.5, "lr": 0.1, "miou": 0.25, "iou": [0.5, 0.0, math.nan]}


class ByBrightness(nn.Module):
    """Class 2 where the red channel is above a half, else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, :1].float() / 255 > 0.5
        return torch.cat((~bright, torch.zeros_like(bright), bright), 1).float()


@pytest.fixture
def val_set(tmp_path: Path) -> SegmentationDataset:
    """Nine flat pictures, each brighter than the one before, of class 1."""
    for index in range(9):
        write(tmp_path / f"data/images/val/{index}.png", np.full((60, 80, 3), 30 * index, np.uint8))
        write(tmp_path / f"data/masks/val/{index}.png", np.ones((60, 80), np.uint8))
    write_labels(tmp_path / "data")
    return open_dataset(f"folder:{tmp_path / 'data'}", "val")


def test_a_row_is_image_label_and_prediction(val_set: SegmentationDataset) -> None:
    sheet = np.asarray(sample_sheet(ByBrightness().eval(), val_set, "epoch 3"))
    assert sheet.shape[0] == 24 + 4 * 300
    for row, index in enumerate((0, 2, 4, 6)):
        image, label, prediction = (sheet[24 + row * 300 + 150, column * 400 + 200].tolist() for column in range(3))
        assert image == [30 * index] * 3
        assert label == list(LABELS.palette[1])
        assert prediction == list(LABELS.palette[2 if 30 * index > 127 else 0])


def test_the_legend_has_the_classes_that_are_shown(val_set: SegmentationDataset) -> None:
    """Class 1 is labeled everywhere; 0 is predicted on dark images, 2 on bright ones. Nothing is ignored."""
    sheet = sample_sheet(ByBrightness().eval(), val_set, "epoch 3")
    beside = sheet.crop((3 * 400, 0, sheet.width, sheet.height))
    colors = {color for _, color in beside.getcolors(2**16) or ()}
    assert set(LABELS.palette) <= colors


def write_log(out: Path, count: int) -> list[dict[str, object]]:
    entries = [{**ENTRY, "epoch": epoch, "miou": epoch / 10} for epoch in range(1, count + 1)]
    out.mkdir(exist_ok=True)
    (out / "log.jsonl").write_text("".join(json.dumps({"event": "epoch", **entry}) + "\n" for entry in entries))
    return [{"event": "epoch", **entry} for entry in entries]


def test_pictures_appear_after_a_validation_and_only_then(tmp_path: Path, val_set: SegmentationDataset) -> None:
    out = tmp_path / "run"
    write_log(out, 2)
    visual_log = VisualLog(out, val_set)
    visual_log({"epoch": 1, "loss": 1.0, "lr": 0.1}, ByBrightness())
    assert [path.name for path in out.iterdir()] == ["log.jsonl"]
    visual_log(ENTRY, ByBrightness())
    visual_log.close()
    assert {path.name for path in out.iterdir()} == {"log.jsonl", "val.png", "curve.png"}
    with Image.open(out / "curve.png") as curve:
        assert curve.size == (800, 450)


def test_the_curve_rises_with_the_score(tmp_path: Path) -> None:
    """The blue points stand higher the later they are."""
    picture = np.asarray(draw_curve(write_log(tmp_path / "run", 6))).astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 100) & (picture[..., 2] > 150)
    rows, columns = np.nonzero(blue)
    left, right = rows[columns < columns.mean()].mean(), rows[columns > columns.mean()].mean()
    assert left > right + 20


def test_the_curve_shows_the_taps_of_each_sampler(tmp_path: Path) -> None:
    plain = write_log(tmp_path / "run", 6)
    sampled = [{**entry, "taps_on_map": {"a.spatial": 0.9, "a.channel": 0.8}} for entry in plain]
    assert draw_curve(sampled).tobytes() != draw_curve(plain).tobytes()


def test_epochs_without_a_score_or_with_none_are_drawn_too() -> None:
    lines = [{"epoch": 1, "loss": None}, {"epoch": 2, "loss": 0.3, "miou": None}]
    assert draw_curve(lines).size == (800, 450)


def test_without_matplotlib_there_is_a_line_and_no_curve(
    tmp_path: Path, val_set: SegmentationDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path / "run", 2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    visual_log = VisualLog(tmp_path / "run", val_set)
    with caplog.at_level("INFO"):
        visual_log(ENTRY, ByBrightness())
        visual_log(ENTRY, ByBrightness())
    assert caplog.text.count("pip install matplotlib") == 1
    assert not (tmp_path / "run/curve.png").exists()
    assert (tmp_path / "run/val.png").exists()


def test_a_picture_that_cannot_be_written_is_a_warning(
    tmp_path: Path, val_set: SegmentationDataset, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path / "run", 2)
    (tmp_path / "run/val.png").mkdir()
    VisualLog(tmp_path / "run", val_set)(ENTRY, ByBrightness())
    assert "cannot write" in caplog.text
    assert (tmp_path / "run/curve.png").exists()


def test_tensorboard_gets_the_figures_and_the_picture(tmp_path: Path, val_set: SegmentationDataset) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_log(tmp_path / "run", 2)
    visual_log = VisualLog(tmp_path / "run", val_set, tensorboard=True)
    taps = {"taps_on_map": {"a.spatial": 0.75}, "blind": {"a.spatial": 0.0}}
    visual_log({"epoch": 2, "loss": 1.0, "lr": 0.1, **taps}, ByBrightness())
    visual_log(ENTRY, ByBrightness())
    visual_log.close()
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 1.0), (3, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("miou")] == [(3, 0.25)]
    assert set(events.Tags()["scalars"]) == {
        "loss", "lr", "miou", "iou/road", "iou/car", "taps_on_map/a.spatial", "blind/a.spatial",
    }  # fmt: skip
    assert [(event.step, event.value) for event in events.Scalars("taps_on_map/a.spatial")] == [(2, 0.75)]
    assert [image.step for image in events.Images("val")] == [3]


def test_a_resumed_run_replaces_the_epochs_that_come_again(tmp_path: Path, val_set: SegmentationDataset) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for losses in ({1: 4.0, 2: 3.0, 3: 2.0}, {2: 1.0}):  # killed after the third, its last whole state is the first's
        visual_log = VisualLog(tmp_path, val_set, tensorboard=True)
        for epoch, loss in losses.items():
            visual_log({"epoch": epoch, "loss": loss, "lr": 0.1}, ByBrightness())
        visual_log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 4.0), (2, 1.0)]


def test_tensorboard_that_is_not_installed_is_said_before_the_run(
    tmp_path: Path, val_set: SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with raises(LookupError, kind="missing-package", name="tensorboard"):
        VisualLog(tmp_path, val_set, tensorboard=True)
