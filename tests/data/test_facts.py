from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.facts import ImageFacts, describe_dark, image_facts
from ddsm_zoo.data.images import ImageError
from tests.support.deep_images import write_png
from tests.support.errors import raises


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("size", [(8, 6), (6, 6)])
@pytest.mark.parametrize("orientation", [None, *range(1, 9), 77])
def test_rotation_and_size(tmp_path: Path, suffix: str, size: tuple[int, int], orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(tmp_path / f"x.{suffix}", exif=exif)
    rotated = orientation in range(2, 9)
    keeps_size = rotated and (size == (6, 6) or orientation in (2, 3, 4))
    assert image_facts(tmp_path / f"x.{suffix}") == ImageFacts(rotated=rotated, keeps_size=keeps_size)


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_pages_and_frames(tmp_path: Path, suffix: str) -> None:
    pages = [Image.fromarray(np.full((6, 6, 3), value, np.uint8)) for value in (0, 90, 200)]
    pages[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=pages[1:])
    assert image_facts(tmp_path / f"x.{suffix}").pages == 3


def test_smaller_copies_and_masks_are_no_pages(tmp_path: Path) -> None:
    frames = [Image.new("L", (side, side)) for side in (16, 8, 16, 16)]
    for frame, kind in zip(frames, (0, 1, 4, 2), strict=True):
        frame.encoderinfo = {"tiffinfo": {254: kind}}
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:], tiffinfo={254: 0})
    assert image_facts(tmp_path / "x.tif").pages == 2


def test_16_bits_of_which_few_are_used(tmp_path: Path) -> None:
    write_png(tmp_path / "x.png", np.array([[7, 812]], np.uint16))
    assert image_facts(tmp_path / "x.png").largest == 812
    assert image_facts(tmp_path / "x.png", bits=10).largest is None
    text = describe_dark({"x": 812, "y": 1023})
    assert text is not None
    assert "up to 1023 where 16 bits reach 65535, as images of 10 bits have" in text
    assert describe_dark({"x": 812, "bright": 60000}) is None
    assert describe_dark({}) is None


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"text")
    with raises(ImageError, kind="image-format"):
        image_facts(tmp_path / "x.png")


def test_a_png_is_decoded_only_for_metadata_behind_its_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 6)).save(path, exif=exif)
    content = path.read_bytes()
    first, pixels, end = content.index(b"eXIf") - 4, content.index(b"IDAT") - 4, content.index(b"IEND") - 4
    path.write_bytes(content[:first] + content[pixels:end] + content[first:pixels] + content[end:])
    assert image_facts(path) == ImageFacts(rotated=True, keeps_size=True)
    damaged = content[: pixels + 8] + b"x" * (end - pixels - 12) + content[end - 4 :]
    path.write_bytes(damaged)
    assert image_facts(path) == ImageFacts(rotated=True, keeps_size=True)
    path.write_bytes(damaged[:first] + damaged[pixels:])
    assert image_facts(path) == ImageFacts()
