"""Images of 16 bits a channel that use fewer: every expected value is one of the 8-bit image that they were made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.depth import likely_bits
from ddsm_zoo.data.images import ImageError, largest_of_16_bits, read_image
from tests.support.deep_images import write_png, write_tiff
from tests.support.errors import raises

EIGHT = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
EIGHT[0, 0], EIGHT[0, 1] = 255, 0


def lower(bits: int) -> np.ndarray:
    """The image in the lower bits of 16: 8 bits scaled to 0 to 2^bits - 1."""
    return np.rint(EIGHT * ((2**bits - 1) / 255)).astype(np.uint16)


def upper(bits: int) -> np.ndarray:
    """The image in the upper bits of 16, as PNG asks for: shifted left, the rest zeros."""
    return lower(bits) << (16 - bits)


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "gray.png": lambda path, values: write_png(path, values[..., 0]),
    "rgb.png": write_png,
    "rgb.tif": write_tiff,
    "motorola.tif": lambda path, values: write_tiff(path, values, order=">"),
}


def expected(name: str) -> np.ndarray:
    return EIGHT[..., :1].repeat(3, 2) if name.startswith("gray") else EIGHT


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_user_says_which_bits_are_in_use(tmp_path: Path, name: str, bits: int) -> None:
    path = WRITERS[name](tmp_path / name, lower(bits))
    assert np.array_equal(np.asarray(read_image(path, bits=bits)), expected(name))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_without_a_word_on_them_the_largest_value_is_known_and_the_image_dark(
    tmp_path: Path, name: str, bits: int
) -> None:
    path = WRITERS[name](tmp_path / name, lower(bits))
    assert largest_of_16_bits(path) == lower(bits)[..., 0 if name.startswith("gray") else slice(None)].max()
    assert likely_bits(2**bits - 1) == bits
    dark = np.asarray(read_image(path)).astype(int)
    assert np.abs(dark - expected(name) / 2 ** (16 - bits)).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("gray", [True, False])
def test_png_says_which_bits_are_in_use_wherever_they_are(tmp_path: Path, bits: int, gray: bool) -> None:
    for values in (lower(bits), upper(bits)):
        path = write_png(tmp_path / "x.png", values[..., 0] if gray else values, significant=bits)
        assert largest_of_16_bits(path) is None or values is not lower
        pixels = np.asarray(read_image(path)).astype(int)
        assert np.abs(pixels - expected("gray" if gray else "rgb")).max() <= (2 if values.max() > 2**bits else 0)


@pytest.mark.parametrize("order", "<>")
def test_tiff_says_the_largest_value_that_is_possible(tmp_path: Path, order: str) -> None:
    path = write_tiff(tmp_path / "x.tif", lower(12), largest=4095, order=order)
    assert np.array_equal(np.asarray(read_image(path)), EIGHT)
    assert largest_of_16_bits(path) is None
    path = write_tiff(tmp_path / "x.tif", lower(12), largest=3987)  # a statistic of one image, no depth
    assert np.asarray(read_image(path)).max() <= 16


def test_bits_are_for_images_of_more_than_eight(tmp_path: Path) -> None:
    Image.fromarray(EIGHT).save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png", bits=12)), EIGHT)
    assert largest_of_16_bits(tmp_path / "x.png") is None
    Image.fromarray(EIGHT // 8).save(tmp_path / "dark.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "dark.png")), EIGHT // 8)


def test_rotated_images_of_16_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lower(12)[..., 0]).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png", bits=12))[..., 0], EIGHT[..., 0].T[:, ::-1])


def test_values_that_the_bits_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = write_png(tmp_path / "x.png", lower(12))
    with raises(ImageError, kind="image-bits", path="x.png", got=4095, expected=1023):
        read_image(path, bits=10)
    with raises(ValueError, kind="argument", name="bits", got=17):
        read_image(path, bits=17)
