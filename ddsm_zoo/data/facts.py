"""Facts of an image file that its pixels do not show: rotation, bits in use, further pages."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ddsm_zoo.data.depth import DARK, likely_bits, png_chunks
from ddsm_zoo.data.images import DECODER_ERRORS, largest_of_16_bits, open_header

ORIENTATION = 0x0112  # EXIF's tag
_METADATA = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})  # PNG's chunks that may hold an orientation
_GDAL_NODATA = 42113  # GDAL's own tag: a number as text
_KIND_OF_PAGE = 254  # TIFF's tag NewSubfileType: bit 0 a smaller copy, bit 2 a mask of another page


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Facts of one image file.

    Attributes:
        rotated: True if its EXIF orientation rotates or mirrors it.
        keeps_size: True if it is rotated and has the same height and width as before.
        pages: Number of pages of a TIFF or frames of an animation, of which only the first is read.
        nodata: Value of pixels without data by GDAL's tag of a TIFF, None without the tag or for no whole number.
        top: Largest value that a gray file can hold, if Pillow scales its values: 3, 15, or the maxval of a PGM.
        border: True if it has rows or columns of black at its border. `image_facts` does not look at its pixels.
        largest: Largest value of a 16-bit image that does not state its bits in use, None for any other image.
    """

    rotated: bool = False
    keeps_size: bool = False
    pages: int = 1
    nodata: int | None = None
    top: int | None = None
    border: bool = False
    largest: int | None = None


def image_facts(path: str | Path, *, bits: int | None = None) -> ImageFacts:
    """Return the facts of an image. Only an image of 16 bits is decoded, and only without ``bits``.

    Raises FileNotFoundError and ImageError for a file that cannot be opened.
    """
    with open_header(Path(path)) as image:
        orientation = orientation_of(image)
        tiles: Any = getattr(image, "tile", ())
        deep = image.mode == "F" or image.mode.startswith("I") or any(";16" in str(tile.args) for tile in tiles)
        top = _top(tiles)
        pages, nodata = _pages(image), _nodata(image)
        square = image.width == image.height
    return ImageFacts(
        rotated=orientation != 1,
        keeps_size=orientation in (2, 3, 4) or (orientation > 4 and square),
        pages=pages,
        nodata=nodata,
        top=top,
        largest=largest_of_16_bits(path) if deep and bits is None else None,
    )


def describe_dark(largest: Mapping[str, int]) -> str | None:
    """Say which bits 16-bit images seem to use, given the largest value of each. None if they use all.

    Bright images among them show that the others are dark, but use the same bits.
    """
    top = max(largest.values(), default=DARK)
    if top >= DARK:
        return None
    return f"values of up to {top} where 16 bits reach 65535, as images of {likely_bits(top)} bits have"


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation: 1 as stored, 2 to 4 of the same size, 5 to 8 on its side."""
    try:
        # Pillow decodes all of a PNG for metadata that may follow its pixels
        stored_first = isinstance(image, PngImageFile) and not _ends_with_metadata(image)
        exif = Image.Image.getexif(image) if stored_first else image.getexif()
        value: Any = exif.get(ORIENTATION, 1)
        return value if value in range(1, 9) else 1
    except (*DECODER_ERRORS, AttributeError):  # damaged metadata, which rotate nothing
        return 1


def _ends_with_metadata(image: PngImageFile) -> bool:
    """Return True for an opened PNG with metadata behind its pixels."""
    with Path(os.fsdecode(image.filename)).open("rb") as file:
        after = itertools.dropwhile(lambda kind: kind != b"IDAT", (kind for kind, _ in png_chunks(file)))
        return not _METADATA.isdisjoint(after)


def _pages(image: Image.Image) -> int:
    """Count the pages, without the smaller copies and masks that a TIFF may have, and the previews of a photo."""
    if image.format not in ("TIFF", "GIF", "WEBP", "PNG"):
        return 1
    count = int(getattr(image, "n_frames", 1))
    if count == 1 or not isinstance(image, TiffImageFile):
        return count
    pages = 0
    for index in range(count):
        image.seek(index)
        pages += not int(image.tag_v2.get(_KIND_OF_PAGE, 0)) & 0b101
    return max(1, pages)


def _top(tiles: Any) -> int | None:
    """Return the largest value that the file can hold, None for one whose values Pillow leaves as they are."""
    for tile in tiles:
        mode, *rest = (tile.args,) if isinstance(tile.args, str) else tuple(tile.args or ("",))
        if tile.codec_name in ("ppm", "ppm_plain"):
            return int(rest[0]) if mode in ("L", "I") and rest[0] not in (255, 65535) else None
        return {"L;2": 3, "L;4": 15}.get(str(mode))
    return None


def _nodata(image: Image.Image) -> int | None:
    text = str(image.tag_v2.get(_GDAL_NODATA, "")) if isinstance(image, TiffImageFile) else ""
    try:
        value = float(text.strip("\0 "))
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
