"""What mask files store: ids in any depth, indices with their palette, colors; and files that hold no ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.mask_files import count_ids, read_stored
from tests.support.data_sets import IMAGE, expect_one_line, write
from tests.support.deep_images import write_png, write_tiff

IDS = np.array([[0, 3, 255], [7, 1, 0]], dtype=np.uint8)


def read(path: Path) -> np.ndarray:
    return read_stored(path).values


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_ids_are_read_as_they_are_stored(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(IDS).save(tmp_path / f"m.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    stored = read_stored(tmp_path / f"m.{suffix}")
    values = stored.values[..., 0] if stored.equal_channels else stored.values  # WebP knows RGB alone
    np.testing.assert_array_equal(values, IDS)
    assert not stored.lossy
    assert not stored.see_through


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_wide_and_floating_point_ids(tmp_path: Path, dtype: type) -> None:
    """GIS tools write TIFFs of 32 bits."""
    wide = IDS.astype(dtype) * 200
    Image.fromarray(wide).save(tmp_path / "m.tif")
    assert read(tmp_path / "m.tif").dtype == np.uint16
    np.testing.assert_array_equal(read(tmp_path / "m.tif"), wide)


def test_palettes_of_grays_have_levels(tmp_path: Path) -> None:
    """GIFs know palettes alone, and number the grays that occur."""
    Image.fromarray(IDS).save(tmp_path / "m.gif")
    stored = read_stored(tmp_path / "m.gif")
    np.testing.assert_array_equal(np.array(stored.levels)[stored.values], IDS)


def test_bits(tmp_path: Path) -> None:
    Image.fromarray(IDS > 2).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read(tmp_path / "m.png"), IDS > 2)


@pytest.mark.parametrize(
    ("pixels", "part"),
    [
        (np.full((2, 2), 0.5, np.float32), "holds 0.5, expected ids, whole numbers from 0 to 65535"),
        (np.full((2, 2), np.nan, np.float32), "holds nan"),
        (np.full((2, 2), 70_000, np.int32), "holds 70000"),
        (np.full((2, 2), -1, np.int32), "holds -1"),
    ],
)
def test_values_that_are_no_ids(tmp_path: Path, pixels: np.ndarray, part: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "m.tif")
    expect_one_line(lambda: read(tmp_path / "m.tif"), "m.tif", part, kind=ImageError)


def test_other_kinds_of_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3)).save(tmp_path / "m.tif")
    expect_one_line(lambda: read(tmp_path / "m.tif"), "m.tif", "CMYK", kind=ImageError)


def test_palettes_and_the_colors_that_occur(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 2, 2]], np.uint8))
    image.save(tmp_path / "plain.png")
    image.putpalette([9, 8, 7, 1, 1, 1, 3, 2, 1])
    image.save(tmp_path / "palette.png")
    stored = read_stored(tmp_path / "palette.png")
    assert stored.palette[:3] == ((9, 8, 7), (1, 1, 1), (3, 2, 1))
    assert stored.shown == {0: (9, 8, 7), 2: (3, 2, 1)}
    assert not stored.numbered
    image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(tmp_path / "ramp.png")
    for name in ("plain.png", "ramp.png"):
        assert read_stored(tmp_path / name).numbered


def test_channels(tmp_path: Path) -> None:
    gray = np.repeat(IDS[..., None], 3, 2)
    assert read_stored(write(tmp_path / "gray.png", gray)).equal_channels
    assert not read_stored(write(tmp_path / "color.png", IMAGE)).equal_channels
    for alpha in (np.full_like(IDS, 255), IDS):
        stored = read_stored(write(tmp_path / "rgba.png", np.dstack([gray, alpha])))
        np.testing.assert_array_equal(stored.values, gray)
        assert stored.see_through == (alpha is IDS)
        Image.fromarray(np.dstack([IDS, alpha]), "LA").save(tmp_path / "la.png")
        np.testing.assert_array_equal(read(tmp_path / "la.png"), IDS)


def test_files_compressed_with_loss(tmp_path: Path) -> None:
    for name, options in {"m.jpg": {}, "m.png": {"format": "jpeg"}, "m.webp": {"quality": 50}}.items():
        Image.fromarray(IMAGE).save(tmp_path / name, **options)
        assert read_stored(tmp_path / name).lossy


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_counts(dtype: type) -> None:
    assert count_ids(IDS.astype(dtype)) == {0: 2, 1: 1, 3: 1, 7: 1, 255: 1}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_upright_as_images_are(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"m.{suffix}"
    Image.fromarray(IDS).save(path, exif=exif)
    turned = [IDS, IDS[:, ::-1], IDS[::-1, ::-1], IDS[::-1], IDS.T, IDS.T[:, ::-1], IDS.T[::-1, ::-1], IDS.T[::-1]]
    np.testing.assert_array_equal(read(path), turned[orientation - 1])
    assert read_stored(path).rotated == (orientation > 1)


@pytest.mark.parametrize("factor", [1, 257], ids=["in the lower bits", "in both bytes"])
@pytest.mark.parametrize("write_deep", [write_png, write_tiff])
def test_colors_of_8_bits_in_16(tmp_path: Path, write_deep: Callable[..., Path], factor: int) -> None:
    """Pillow keeps the upper bits alone, which read ids in three channels as 0."""
    deep = IMAGE.astype(np.uint16) * factor
    np.testing.assert_array_equal(read(write_deep(tmp_path / "m", deep)), IMAGE)


def test_colors_of_16_bits_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "m.png", IMAGE.astype(np.uint16) * 3)
    expect_one_line(lambda: read(tmp_path / "m.png"), "3 channels of 16 bits, expected ids", kind=ImageError)
