"""Images whose files say more than their pixels: each is read as it should be, and what may surprise is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.check.report import require_sound
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.masks import DatasetError
from tests.support.deep_images import write_png
from tests.support.errors import raises
from tests.support.label_doctor import IDS, NAMES, build, check, found, four, text_of


def rotate(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_rotations_that_keep_the_size_are_said(
    tmp_path: Path, quick: bool, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = build(tmp_path, four())
    for name in "ab":
        rotate(root / "images" / "train" / f"{name}.png", orientation)
    report = check(root, quick=quick)
    assert found(report) == {("train", "exif-rotated"): ("warning", 2)}
    assert text_of(report, "exif-rotated") == (
        "train: an EXIF rotation that keeps the size of 2 of 3 images, which are read upright: their masks must be "
        "upright too, or the tag removed: images/train/a.png, images/train/b.png"
    )
    require_sound(f"folder:{root}", ["train"])
    assert "an EXIF rotation that keeps the size of 2 of 3 images" in caplog.text


def test_a_quarter_turn_of_a_square_image_keeps_its_size(tmp_path: Path) -> None:
    root = build(tmp_path, four(IDS[:, :12]))
    rotate(root / "images" / "val" / "d.png", 6)
    assert found(check(root)) == {("val", "exif-rotated"): ("warning", 1)}


def test_another_size_after_a_rotation_names_exif(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    rotate(root / "images" / "train" / "a.png", 6)
    assert "masks/train/a.png (16 x 12, its image 12 x 16, which EXIF rotates)" in text_of(
        check(root, quick=True), "size-mismatch"
    )
    with raises(DatasetError, kind="size-mismatch", path="masks/train/a.png", got=(12, 16), expected=(16, 12)) as error:
        open_dataset(f"folder:{root}", "train")[0]
    assert "EXIF" in str(error.value)


@pytest.mark.parametrize("quick", [False, True])
def test_images_that_use_few_of_16_bits_are_said(tmp_path: Path, quick: bool) -> None:
    root = build(tmp_path, four())
    dark = np.arange(IDS.size, dtype=np.uint16).reshape(IDS.shape) * 20
    write_png(root / "images" / "train" / "a.png", dark)
    report = check(root, quick=quick)
    assert found(report) == {("train", "dark-images"): ("warning", 1)}
    assert f"up to {dark.max()} where 16 bits reach 65535, as images of 12 bits have in 1 of 3" in text_of(
        report, "dark-images"
    )
    write_png(root / "images" / "train" / "a.png", dark, significant=12)
    assert found(check(root, quick=quick)) == {}
    write_png(root / "images" / "train" / "a.png", dark)
    (root / "labels.json").write_text(json.dumps({"names": NAMES, "bits": 12}))
    assert found(check(root, quick=quick)) == {}
    image = open_dataset(f"folder:{root}", "train")[0][0]
    assert np.array_equal(image[0].numpy(), np.rint(dark / (4095 / 255)))
    (root / "labels.json").write_text(json.dumps({"names": NAMES, "bits": 99}))
    with raises(DatasetError, kind="label-file", path="labels.json", name="bits", got=99):
        check(root)


def test_further_pages_are_said(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    pages = [Image.fromarray(np.full((*IDS.shape, 3), value, np.uint8)) for value in (9, 90)]
    (root / "images" / "train" / "a.png").unlink()
    pages[0].save(root / "images" / "train" / "a.tif", save_all=True, append_images=pages[1:])
    report = check(root)
    assert found(report) == {("train", "more-pages"): ("warning", 1)}
    assert "images/train/a.tif (2)" in text_of(report, "more-pages")
