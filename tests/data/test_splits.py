"""Data without a split to validate on: a part of the training images takes its place, always the same one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.splits import held_out, open_training_sets, training_splits
from tests.support.data_sets import IDS, IMAGE, expect_one_line, write, write_labels

names = st.lists(st.text(max_size=5), min_size=2, max_size=40, unique=True)


def keep(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return image, mask


def build(root: Path, **splits: int) -> str:
    for split, count in splits.items():
        for index in range(count):
            write(root / f"images/{split}/{index:02}.png", np.roll(IMAGE, index, 0))
            write(root / f"masks/{split}/{index:02}.png", IDS % 3)
    write_labels(root)
    return f"folder:{root}"


@given(names, st.floats(0.001, 0.999))
def test_the_share_is_held_out_and_some_stay(names: list[str], share: float) -> None:
    out = held_out(names, share)
    assert out == sorted(set(out))
    assert set(out) < set(range(len(names)))
    assert len(out) == min(max(1, round(share * len(names))), len(names) - 1)


@given(names, st.floats(0.001, 0.999))
def test_a_name_is_held_out_wherever_it_stands(names: list[str], share: float) -> None:
    backwards = names[::-1]
    assert {names[i] for i in held_out(names, share)} == {backwards[i] for i in held_out(backwards, share)}


@given(names, st.floats(0.05, 0.95), st.text(max_size=5))
def test_one_more_name_moves_at_most_one_other_each_way(names: list[str], share: float, more: str) -> None:
    before = {names[i] for i in held_out(names, share)}
    longer = [*names, more] if more not in names else names
    after = {longer[i] for i in held_out(longer, share)}
    assert len((before ^ after) - {more}) <= 1


def test_without_val_a_part_of_train_validates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = build(tmp_path, train=20)
    train_set, val_set, kept = open_training_sets(data, 0.2, keep, keep, seed=3)
    assert (len(train_set), len(val_set), train_set.seed) == (16, 4, 3)
    whole = open_dataset(data, "train").pairs
    assert train_set.pairs == tuple(whole[index] for index in kept)
    assert set(train_set.pairs) | set(val_set.pairs) == set(whole)
    (line,) = caplog.messages
    assert "has no split val: 4 of the 20 images in train are held out" in line
    assert val_set.pairs[0].name in line
    assert training_splits(data) == ("train",)


@pytest.mark.parametrize("rendered", [False, True])
def test_with_val_nothing_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, rendered: bool) -> None:
    data = "scenes:3" if rendered else build(tmp_path, train=3, val=3)
    train_set, val_set, kept = open_training_sets(data, 0.2, keep, keep, seed=0)
    assert (len(train_set), len(val_set), kept) == (3, 3, [0, 1, 2])
    assert not caplog.messages
    assert training_splits(data) == ("train", "val")


def test_one_image_is_too_few(tmp_path: Path) -> None:
    data = build(tmp_path, train=1)
    expect_one_line(
        lambda: open_training_sets(data, 0.2, keep, keep, seed=0),
        "has no split val and 1 image in train, expected at least 2",
    )
