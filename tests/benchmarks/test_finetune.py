"""The comparison of fine-tuning: its scores, its data, and a dry run with the smallest sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.finetune.__main__ import main
from benchmarks.finetune.data import iou_of, prepare
from benchmarks.finetune.fields import render_field
from benchmarks.finetune.methods import Plain
from benchmarks.finetune.plan import OURS, RATES, Plan
from benchmarks.finetune.table import BEGIN, END
from ddsm_zoo.metrics import ConfusionMatrix

TINY = ["--seconds", "0.01", "--batch", "2", "--shrink", "8", "--train", "4"]


def test_scores_are_those_of_the_package() -> None:
    rng = np.random.default_rng(0)
    target, prediction = (rng.integers(0, 3, (2, 9, 11)).astype(np.uint8) for _ in range(2))
    target[0, :3] = 255
    confusion = ConfusionMatrix(3, 255)
    confusion.update(*(torch.tensor(ids).long() for ids in (prediction, target)))
    assert iou_of(list(zip(target, prediction, strict=True)), 3) == pytest.approx(
        [100 * iou for iou in confusion.compute()["iou"]]
    )


def test_a_photo_shows_soil_crop_and_weed_and_follows_from_its_seed() -> None:
    image, mask = render_field(1, (120, 160))
    assert image.shape == (120, 160, 3)
    assert np.unique(mask).tolist() == [0, 1, 2]
    assert (mask == 0).mean() > 0.7
    again, other = render_field(1, (120, 160)), render_field(2, (120, 160))
    assert np.array_equal(image, again[0])
    assert np.array_equal(mask, again[1])
    assert not np.array_equal(mask, other[1])
    green = image[..., 1].astype(int) - image[..., 0]
    assert green[mask > 0].mean() > green[mask == 0].mean() + 10


def test_masks_of_0_and_255_become_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind, value in (("images", 90), ("masks", 0)):
            pixels = np.full((16, 20), value, np.uint8)
            pixels[8:] = 255
            (tmp_path / kind / split).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / kind / split / "a.png")
    (tmp_path / "labels.json").write_text('{"names": ["membrane", "cell"]}')
    root = prepare(f"cells={tmp_path}", tmp_path / "out", Plan(shrink=2))
    with Image.open(root / "masks/val/a.png") as mask, Image.open(root / "images/val/a.png") as image:
        assert np.asarray(mask).tolist() == [[0] * 10] * 4 + [[1] * 10] * 4
        assert image.size == (10, 8)


def test_a_dry_run_fills_the_table_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    command = ["fields", "--out", str(tmp_path / "out"), "--seeds", "0", *TINY]
    assert main([*command, "--methods", "smp DeepLabV3+", OURS, "--page", str(page)]) == 0
    cells = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out/cells").iterdir()}
    assert len(cells) == 1 + len(RATES)
    assert all(0 <= cell["miou"] <= 100 and cell["epochs"] == 2 for cell in cells.values())
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| fields")]
    assert [row.count("not measured") for row in rows] == [0, 1, 1, 0]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").iterdir()}
    assert main([*command, "--methods", "smp DeepLabV3+", OURS]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").iterdir()} == stamps
    capsys.readouterr()
    assert main(["fields", "--out", str(tmp_path / "out"), "--table", *TINY[2:]]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_the_plain_loop_starts_from_imagenet_weights() -> None:
    """Of the encoder: two networks share them, whatever else is random."""
    first, second = (Plain("Unet", 2).net.encoder.state_dict() for _ in range(2))
    assert all(bool((tensor == second[name]).all()) for name, tensor in first.items())
