"""Masks with other names than their images: one for each class, or all with an unknown end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddsm_zoo.data.check.report import check_data
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.mask_names import classes_apart
from tests.support.data_sets import IDS, IMAGE, expect_one_line, write, write_labels


@pytest.mark.parametrize(
    "pattern",
    ["{name}_{label}", "{name}-{label}", "{name}.{label}", "{label}/{name}", "{name}/{label}", "{name}_mask_{label}"],
)
def test_names_of_images_and_classes(pattern: str) -> None:
    masks = [pattern.format(name=name, label=label) for name in ("img1", "img10") for label in ("road", "traffic_sign")]
    assert classes_apart(["img1", "img10"], masks) == {
        "img1": {"road": masks[:1], "traffic_sign": masks[1:2]},
        "img10": {"road": masks[2:3], "traffic_sign": masks[3:]},
    }


@pytest.mark.parametrize(
    "masks",
    [
        [],
        ["img1", "img2"],
        ["img1_mask", "img2_mask"],  # one word is no class
        ["img1_road", "img2_road"],
        ["other_road", "other_car"],
        ["img1", "img2", "img3", "img4", "img1_road", "img1_car"],
    ],
)
def test_other_names(masks: list[str]) -> None:
    assert classes_apart(["img1", "img2"], masks) == {}


@pytest.mark.parametrize("end", ["_{}", "/{}", "_mask_{}", "/object{}", "/" + 20 * "0{0}a"])
def test_numbers_and_hashes_are_objects(end: str) -> None:
    masks = [f"img1{end.format(1)}", f"img1{end.format(2)}", f"img2{end.format(3)}"]
    assert classes_apart(["img1", "img2"], masks) == {"img1": {"object": masks[:2]}, "img2": {"object": masks[2:]}}


@pytest.mark.parametrize("folder", ["", "0/"])
def test_names_of_images_with_zeros_in_front(folder: str) -> None:
    """CelebAMask-HQ: the masks of 0.jpg and 10.jpg, in folders that are called like images."""
    masks = [f"{folder}{number:05d}_{label}" for number in (0, 10) for label in ("hair", "l_eye")]
    assert classes_apart(["0", "10"], masks) == {
        "0": {"hair": masks[:1], "l_eye": masks[1:2]},
        "10": {"hair": masks[2:3], "l_eye": masks[3:]},
    }


@pytest.mark.parametrize(
    "place",
    [
        "masks_{label}/{split}/{name}.png",
        "{label}-mask/{split}/{name}.png",
        "masks/{split}/{name}_{label}.png",
        "masks/{split}/{label}/{name}.png",
        "masks/{label}/{split}/{name}.png",
        "masks/{split}/{name}/{label}.png",
        "labels/{split}/{name}_{label}.png",
    ],
)
@pytest.mark.parametrize("described", [False, True])
def test_the_error_has_the_command_that_merges_them(tmp_path: Path, place: str, described: bool) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(tmp_path / f"images/{split}/{name}.png", np.roll(IMAGE, ord(name) + len(split), 0))
            for label in ("car", "road"):
                write(tmp_path / place.format(split=split, name=name, label=label), (IDS > 3) * IDS.dtype.type(255))
    parts = (
        "each class has masks of its own (car, road); import it: ddsm-zoo import-data class-masks ",
        f"{tmp_path.name}-data",
    )
    data = f"folder:{tmp_path}"
    if described:
        write_labels(tmp_path)
        assert {problem.kind for problem in check_data(data).problems} <= {"missing-mask", "arrangement"}
    expect_one_line(lambda: open_dataset(data, "train"), *parts)


def test_one_folder_of_images_and_their_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.png", IMAGE)
        for label in ("car", "road"):
            write(tmp_path / f"{name}_{label}.png", IDS)
    write_labels(tmp_path)
    expect_one_line(lambda: open_dataset(f"folder:{tmp_path}", "train"), "import-data class-masks")


@pytest.mark.parametrize("folder", ["masks", "images"])
def test_an_unknown_end_of_all_masks_is_a_field_of_labels_json(tmp_path: Path, folder: str) -> None:
    for name in ("a", "ab", "b"):
        write(tmp_path / f"images/train/{name}.png", np.roll(IMAGE, ord(name[-1]), 0))
        write(tmp_path / f"{folder}/train/{name}_Q.png", IDS % 3)
    write_labels(tmp_path)
    data = f"folder:{tmp_path}"
    expect_one_line(lambda: open_dataset(data, "train"), 'NAME_Q: if so, say "mask_suffix": "_Q" in labels.json')
    write_labels(tmp_path, mask_suffix="_Q")
    assert [pair.name for pair in open_dataset(data, "train").pairs] == ["a", "ab", "b"]


def test_an_end_that_no_mask_has_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"images/train/{name}.png", IMAGE)
        write(tmp_path / f"masks/train/{name}.png", IDS % 3)
    write_labels(tmp_path, mask_suffix="_mask.png")
    expect_one_line(lambda: open_dataset(f"folder:{tmp_path}", "train"), 'remove "mask_suffix" from labels.json')


def test_different_ends_are_no_suffix(tmp_path: Path) -> None:
    for name, end in (("a", "_Q"), ("b", "_R")):
        write(tmp_path / f"images/train/{name}.png", IMAGE)
        write(tmp_path / f"masks/train/{name}{end}.png", IDS % 3)
    write_labels(tmp_path)
    expect_one_line(lambda: open_dataset(f"folder:{tmp_path}", "train"), "expected masks/train/NAME.png: images/")
