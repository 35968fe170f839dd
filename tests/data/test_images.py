from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddsm_zoo.data.images import ImageError, image_size, is_lossy, picture_box, read_image
from ddsm_zoo.data.mask_files import read_stored
from tests.support.errors import raises

# corners in four colors, wider than high: every orientation looks different
CORNERS = np.zeros((16, 32, 3), dtype=np.uint8)
CORNERS[:8, :16], CORNERS[:8, 16:], CORNERS[8:, :16] = (250, 20, 20), (20, 250, 20), (20, 20, 250)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# EXIF's definition: tag -> where the stored first row and first column lie in the upright image, as array operations
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.swapaxes(0, 1),  # left, top
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda stored: stored.swapaxes(0, 1)[::-1],  # left, bottom
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honored(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(path, CORNERS, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as decoded:
        stored = np.asarray(decoded) if suffix == "jpg" else CORNERS  # a JPEG does not give them back exactly
    expected = UPRIGHT[orientation](stored)
    actual = np.asarray(read_image(path))
    assert actual.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    np.testing.assert_array_equal(actual, expected)


def test_eight_bit_color_comes_back_exactly(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif", "ppm"):
        image = read_image(save(tmp_path / f"image.{suffix}", CORNERS))
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), CORNERS)


def test_unreadable_metadata_does_not_spoil_the_image(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", CORNERS, exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert read_image(path).size == (32, 16)


def test_a_damaged_tag_beside_the_orientation_does_not_hide_it(tmp_path: Path) -> None:
    orientation, maker = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), struct.pack("<HHIf", 0x010F, 11, 1, 0.5)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + maker + orientation + bytes(4)
    assert read_image(save(tmp_path / "photo.jpg", CORNERS, exif=exif)).size == (16, 32)


def test_gray_is_repeated(tmp_path: Path) -> None:
    gray = np.arange(0, 250, dtype=np.uint8).reshape(10, 25)
    np.testing.assert_array_equal(
        np.asarray(read_image(save(tmp_path / "gray.png", gray))), np.stack([gray] * 3, axis=-1)
    )


def test_transparency_is_dropped_not_blended(tmp_path: Path) -> None:
    alpha = np.full((16, 32, 1), 3, dtype=np.uint8)
    path = save(tmp_path / "rgba.png", np.concatenate([CORNERS, alpha], axis=2))
    np.testing.assert_array_equal(np.asarray(read_image(path)), CORNERS)
    path = save(tmp_path / "la.png", np.concatenate([CORNERS[..., :1], alpha], axis=2))
    np.testing.assert_array_equal(np.asarray(read_image(path)), CORNERS[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_scale_to_eight(tmp_path: Path, suffix: str) -> None:
    wide = np.array([[0, 128, 129, 257, 32768, 65534, 65535]], dtype=np.uint16)
    pixels = np.asarray(read_image(save(tmp_path / f"wide.{suffix}", wide)))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]
    assert (pixels == pixels[..., :1]).all()


def test_palette_with_transparency_reads_its_colors(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode=None).convert("P")
    image.putdata([0, 1, 2, 1])
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    pixels = np.asarray(read_image(tmp_path / "palette.png"))
    assert pixels.tolist() == [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]


def test_cmyk_bilevel_and_animation(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    red = np.asarray(read_image(tmp_path / "cmyk.jpg"))[1, 1].astype(int)
    assert red[0] > 240
    assert max(red[1:]) < 15
    Image.new("1", (4, 3), 1).save(tmp_path / "bits.png")
    assert (np.asarray(read_image(tmp_path / "bits.png")) == 255).all()
    frames = [Image.new("L", (4, 3), value) for value in (60, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (np.asarray(read_image(tmp_path / "moving.gif")) == 60).all()


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 4000)])
def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").size == size


def test_missing_file(tmp_path: Path) -> None:
    for read in (read_image, read_stored):
        with pytest.raises(FileNotFoundError) as error:
            read(tmp_path / "absent.png")
        one_line(error, "absent.png")


@pytest.mark.parametrize("read", [read_image, read_stored])
def test_files_that_hold_no_whole_image(tmp_path: Path, read: Callable[[Path], object]) -> None:
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    deep = save(tmp_path / "deep.tif", np.zeros((4, 4), np.float32))
    bits = struct.pack("<HHIHH", 258, 3, 1, 32, 0)  # BitsPerSample
    deep.write_bytes(deep.read_bytes().replace(bits, struct.pack("<HHIHH", 258, 3, 1, 64, 0)))
    cases = {
        "empty.png": (b"", "is empty"),
        "text.jpg": (b"this is not an image\n" * 20, "is no image"),
        "half.png": (whole.read_bytes()[: whole.stat().st_size // 2], "truncated"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "Git LFS"),
        "page.png": (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC image"),
        "bands.tif": (deep.read_bytes(), "is a TIFF whose bands or bits"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
    }
    for name, (content, expected) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError) as error:
            read(tmp_path / name)
        one_line(error, name, expected)
    with pytest.raises(ImageError) as error:
        read(tmp_path)
    one_line(error, "is a folder")


@pytest.mark.parametrize("read", [read_image, read_stored, image_size, is_lossy])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "image.png")
    with raises(ImageError, kind="image-format", path=tmp_path / "image.png"):
        read(tmp_path / "image.png")


def test_decompression_bomb_is_refused_without_decoding(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / "bomb.png")
    one_line(error, "bomb.png", "too large")


def test_the_largest_number_of_pixels_can_be_chosen(tmp_path: Path) -> None:
    path = save(tmp_path / "image.png", CORNERS)
    before = Image.MAX_IMAGE_PIXELS
    assert read_image(path, max_pixels=32 * 16).size == (32, 16)
    with pytest.raises(ImageError) as error:
        read_image(path, max_pixels=32 * 16 - 2)
    one_line(error, "image.png", "too large")
    assert before == Image.MAX_IMAGE_PIXELS


def test_images_read_at_once_leave_the_warnings_as_they_were(tmp_path: Path) -> None:
    damaged = [save(tmp_path / f"{number}.jpg", CORNERS, exif=b"Exif\0\0II*\0\xff\xff\xff\xff") for number in range(40)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:  # a warning would be an error here
        assert {image.size for image in pool.map(read_image, damaged)} == {(32, 16)}
    assert warnings.filters == before


def test_pixels_wider_than_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)).save(tmp_path / "wide.tif")
    for name in ("float.tif", "wide.tif"):
        with pytest.raises(ImageError) as error:
            read_image(tmp_path / name)
        one_line(error, name, "expected 8 or 16 bits")


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except ImageError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def encoded() -> dict[str, bytes]:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(
            buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {})
        )
        files[kind] = buffer.getvalue()
    return files


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(
    tmp_path: Path, encoded: dict[str, bytes], data: st.DataObject
) -> None:
    content = bytearray(encoded[data.draw(st.sampled_from(sorted(encoded)))])
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path / "damaged"
    path.write_bytes(content if data.draw(st.booleans()) else content[:cut])
    for message in (refusal(read_image, path), refusal(read_stored, path)):
        assert message is None or ("damaged" in message and "\n" not in message)


# --- looking at a file without decoding it --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif", "ppm"])
def test_the_size_is_that_of_the_image(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"image.{suffix}", CORNERS)
    assert image_size(path) == (16, 32)
    assert is_lossy(path) == (suffix in ("jpg", "webp"))
    path.rename(tmp_path / "image.png")  # the content decides
    assert image_size(tmp_path / "image.png") == (16, 32)
    assert is_lossy(tmp_path / "image.png") == (suffix in ("jpg", "webp"))


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_with_and_without_loss(tmp_path: Path, lossless: bool) -> None:
    """Alone, with transparency, with metadata of odd length and as an animation: all but the first in chunks."""
    clear = np.dstack([CORNERS, CORNERS[..., :1]])
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0"
    second = Image.fromarray(CORNERS[::-1])
    for options in ({}, {"exif": exif}, {"icc_profile": b"x" * 7}, {"save_all": True, "append_images": [second]}):
        for pixels in (CORNERS, clear):
            path = save(tmp_path / "image.webp", pixels, lossless=lossless, **options)
            assert is_lossy(path) != lossless, options
    path.write_bytes(path.read_bytes()[:14])
    assert not is_lossy(path)  # nothing in it; reading it says so


@pytest.mark.parametrize(("compression", "lossy"), [("jpeg", True), ("tiff_lzw", False), (None, False)])
def test_tiff_with_and_without_loss(tmp_path: Path, compression: str | None, lossy: bool) -> None:
    assert is_lossy(save(tmp_path / "image.tif", CORNERS, compression=compression)) == lossy


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"photo.{suffix}", CORNERS, exif=exif)
    assert image_size(path) == ((16, 32) if orientation < 5 else (32, 16))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_cut_short_anywhere_has_no_size(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"photo.{suffix}", CORNERS)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            read_image(path)
        except ImageError as error:
            expected = str(error)
        else:
            continue  # what is missing is not needed
        with pytest.raises(ImageError) as caught:
            image_size(path)
        assert str(caught.value) == expected


def test_no_file_has_no_size(tmp_path: Path) -> None:
    with raises(FileNotFoundError, kind="missing-file", path="nowhere.png"):
        image_size(tmp_path / "nowhere.png")


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ((0, 0, 0, 0), None),
        ((2, 0, 0, 0), (0, 2, 48, 36)),
        ((1, 5, 3, 8), (3, 1, 40, 31)),
        ((7, 0, 0, 0), None),  # deeper than a sixth: a part of the picture
        ((7, 1, 0, 0), (0, 0, 48, 35)),
        ((36, 0, 0, 0), None),
    ],
)
def test_black_borders(margins: tuple[int, int, int, int], expected: tuple[int, int, int, int] | None) -> None:
    top, bottom, left, right = margins
    pixels = np.full((36, 48, 3), 7, np.uint8)
    pixels[top : 36 - bottom, left : 48 - right] = 90
    assert picture_box(Image.fromarray(pixels)) == expected
