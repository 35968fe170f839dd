"""Folds: who is held out, and that the package reads the folders as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.evidence import folds
from benchmarks.evidence.folds import never_held_out, open_folds, plan_folds, read_pool, write_folds
from benchmarks.evidence.matrix import FoldPlan
from ddsm_zoo.data.datasets import open_dataset
from tests.support.data_sets import IDS, IMAGE, expect_one_line, write, write_labels

SEQUENCES = FoldPlan(by="sequence", names=("a", "b2"))
COLORS = np.array([(128, 128, 128), (128, 0, 0), (64, 0, 128)], dtype=np.uint8)  # CamVid's sky, building and car


def write_camvid(root: Path, *, colored: bool = False) -> Path:
    """Images of the sequences a, b2 and c in train and in val, each with a mask of its own."""
    for split, names in (("train", ("a_1", "a_2", "b2_1", "c_9")), ("val", ("c_10", "b2_x_3"))):
        for number, name in enumerate(names):
            write(root / split / f"{name}.png", np.roll(IMAGE, number, axis=0))
            ids = np.roll(IDS, number, axis=1)
            if colored:
                write(root / f"{split}_labels" / f"{name}_L.png", COLORS[ids % 3])
            else:
                write(root / f"{split}annot" / f"{name}.png", ids)
    return root


def write_slices(root: Path, count: int, values: tuple[int, int] = (0, 1)) -> Path:
    """Numbered slices, every fifth in val."""
    for number in range(count):
        split = "val" if number % 5 == 4 else "train"
        write(root / "images" / split / f"{number}.png", IMAGE)
        write(root / "masks" / split / f"{number}.png", np.array(values, dtype=np.uint8)[IDS % 2])
    write_labels(root, names=["this", "that"])
    return root


@pytest.mark.parametrize("colored", [False, True])
def test_a_sequence_is_held_out_and_everything_else_trains(tmp_path: Path, colored: bool) -> None:
    source = f"camvid:{write_camvid(tmp_path / 'data', colored=colored)}"
    made = open_folds(source, SEQUENCES, tmp_path / "out")
    assert list(made) == ["a", "b2"]
    data, fold = made["b2"]
    assert set(fold.val) == {"b2_1", "b2_x_3"}
    assert set(never_held_out(each for _, each in made.values())) == {"c_9", "c_10"}
    for split, names in (("val", fold.val), ("train", ("a_1", "a_2", "c_9", "c_10"))):
        found = open_dataset(data, split)
        assert {pair.name for pair in found.pairs} == set(names)
        whole = {
            pair.name: each.load(index)
            for each in (open_dataset(source, "train"), open_dataset(source, "val"))
            for index, pair in enumerate(each.pairs)
        }
        for index, pair in enumerate(found.pairs):
            for got, expected in zip(found.load(index), whole[pair.name], strict=True):
                assert torch.equal(got, expected)


def test_blocks_are_neighbors_by_number_and_hold_out_each_image_once(tmp_path: Path) -> None:
    pool = read_pool(f"folder:{write_slices(tmp_path, 12)}")
    held = [fold.val for fold in plan_folds(pool, FoldPlan(by="block", count=5))]
    assert held == [("0", "1"), ("2", "3"), ("4", "5", "6"), ("7", "8"), ("9", "10", "11")]


def test_mask_values_become_class_ids(tmp_path: Path) -> None:
    spec = f"folder:{write_slices(tmp_path / 'data', 4, values=(0, 255))}"
    plan = FoldPlan(by="block", count=2, ids={"0": 0, "255": 1})
    data, _ = open_folds(spec, plan, tmp_path / "out")["block1"]
    _, mask = open_dataset(data, "train").load(0)
    np.testing.assert_array_equal(mask.numpy(), IDS % 2)
    unknown = FoldPlan(by="block", count=2, ids={"0": 0})
    expect_one_line(lambda: open_folds(spec, unknown, tmp_path / "other"), "[255]", "expected the values [0]")
    assert not list((tmp_path / "other").glob("folds/*"))


def test_where_no_links_can_be_made_there_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    data, _ = open_folds(f"camvid:{write_camvid(tmp_path / 'data')}", SEQUENCES, tmp_path / "out")["a"]
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert len(open_dataset(data, "train")) == 4


def test_folds_that_are_there_stay_and_other_ones_are_refused(tmp_path: Path) -> None:
    pool = read_pool(f"camvid:{write_camvid(tmp_path / 'data')}")
    write_folds(pool, SEQUENCES, tmp_path / "out")
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    write_folds(pool, SEQUENCES, tmp_path / "out")
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    write(tmp_path / "data/train/d_1.png", IMAGE)
    write(tmp_path / "data/trainannot/d_1.png", IDS)
    grown = read_pool(f"camvid:{tmp_path / 'data'}")
    expect_one_line(lambda: write_folds(grown, SEQUENCES, tmp_path / "out"), "is not this fold", "delete it")


def test_a_killed_process_leaves_no_half_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = read_pool(f"camvid:{write_camvid(tmp_path / 'data')}")
    monkeypatch.setattr(folds, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_folds(pool, SEQUENCES, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_rendered_scenes_are_sequences(tmp_path: Path) -> None:
    made = open_folds("scenes:2", FoldPlan(by="sequence", names=("north", "south")), tmp_path)
    data, fold = made["south"]
    assert fold.val == ("south_000", "south_001")
    image, mask = open_dataset(data, "val").load(0)
    assert image.shape[1:] == mask.shape
    assert len(mask.unique()) > 4
    record = json.loads((tmp_path / "folds/south/fold.json").read_text())
    assert record["train"] == ["north_000", "north_001"]


def test_what_cannot_be_divided_is_one_line(tmp_path: Path) -> None:
    camvid, out = f"camvid:{write_camvid(tmp_path / 'data')}", tmp_path / "out"
    unknown = FoldPlan(by="sequence", names=("a", "0001TX"))
    expect_one_line(lambda: open_folds(camvid, unknown, out), "no sequence 0001TX", "a (2), b2 (2), c (2)")
    slices = f"folder:{write_slices(tmp_path / 'slices', 3)}"
    blocks = FoldPlan(by="block", count=5)
    expect_one_line(lambda: open_folds(slices, blocks, out), "fold block1", "no images to validate on", "3 in all")
    one = f"camvid:{tmp_path / 'one'}"
    write(tmp_path / "one/train/a_1.png", IMAGE)
    write(tmp_path / "one/trainannot/a_1.png", IDS)
    alone = FoldPlan(by="sequence", names=("a",))
    expect_one_line(lambda: open_folds(one, alone, out), "fold a", "no images to train on")
    expect_one_line(lambda: open_folds("cityscapes:here", alone, out), "camvid:ROOT, folder:ROOT or scenes:N")
    expect_one_line(lambda: open_folds("scenes:many", alone, out), "N from 1 to 1000")
    write(tmp_path / "data/val/a_1.png", IMAGE)
    write(tmp_path / "data/valannot/a_1.png", IDS)
    expect_one_line(lambda: open_folds(camvid, SEQUENCES, out), "a_1 in train and in val", "rename one")
    assert not out.exists()
