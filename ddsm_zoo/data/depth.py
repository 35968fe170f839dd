"""Images of more than 8 bits a channel: the bits that they use, and their values as 8 bits."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ddsm_zoo.errors import ArgumentError

Values = npt.NDArray[np.uint16]

DARK = 2**14  # images of 16 bits whose largest value is below this use too few of them to look right
_DEPTHS = (8, 10, 12, 14)  # bits of cameras and scanners
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF


def require_bits(bits: int | None) -> None:
    """Raise ValueError unless ``bits`` is None or a number of bits in use, 1 to 16."""
    if bits is not None and not 1 <= bits <= 16:
        raise ArgumentError.of("bits", bits, "the bits in use of 16-bit images, 1 to 16, such as 12")


def likely_bits(largest: int) -> int:
    """Return the number of bits that images with this largest value probably have: 8, 10, 12, 14 or 16."""
    return next((bits for bits in _DEPTHS if largest < 1 << bits), 16)


def scale_to_8_bit(values: Values, bits: int) -> npt.NDArray[np.uint8]:
    """Scale values of ``bits`` bits to 0 to 255. Raises ValueError for a larger value."""
    top = (1 << bits) - 1
    if (largest := int(values.max())) > top:
        raise ArgumentError(
            f"has the value {largest}, expected at most {top} in images of {bits} bits",
            kind="image-bits",
            got=largest,
            expected=top,
        )
    return np.rint(values / (top / 255)).astype(np.uint8)


def stated_bits(path: Path, values: Values) -> int | None:
    """Return the bits in use that the file states, None if it states none or its values do not fit them.

    These are PNG's chunk sBIT, and TIFF's tags BitsPerSample and, if its value has the form 2^n - 1,
    MaxSampleValue.
    PNG wants values of fewer bits in the upper bits, where they need no scaling. Many programs leave them in the lower.
    """
    bits, certain = _stated_in_tiff(path), True
    if bits is None:
        bits, certain = _stated_in_png(path), False
    if bits is None or bits >= 16 or values.max() >= 1 << bits:
        return None
    unused = (1 << (16 - bits)) - 1
    return bits if certain or (values & unused).any() else None


def low_bytes(image: Any) -> Image.Image | None:
    """Decode the lower bytes of an opened RGB image of 16 bits, of which Pillow keeps the upper. None for any other.

    Pillow's names for the order of the two bytes decide which of them it takes.
    """
    other = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
    tiles: list[Any] = []
    for tile in image.tile:
        mode, *rest = (tile.args,) if isinstance(tile.args, str) else tuple(tile.args or ("",))
        if not str(mode).startswith("RGB") or str(mode)[-4:] not in other:
            return None
        mode = mode[:-4] + other[mode[-4:]]
        tiles.append(tile._replace(args=mode if isinstance(tile.args, str) else (mode, *rest)))
    if not tiles:
        return None
    image.tile = tiles
    image.load()
    lower: Image.Image = image
    return lower


def png_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Iterate over kind and length of a PNG's chunks, with ``file`` at the content of each. No other file has any."""
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        end = file.tell() + length + 4
        yield kind, length
        file.seek(end)


def _stated_in_png(path: Path) -> int | None:
    with path.open("rb") as file:
        for kind, length in png_chunks(file):
            if kind == b"sBIT":
                return next(iter(file.read(length)), None)
            if kind == b"IDAT":
                return None
    return None


def _stated_in_tiff(path: Path) -> int | None:
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            assert isinstance(image, TiffImageFile)
            tags: Any = image.tag_v2
    except UnidentifiedImageError:
        return None
    depth, largest = (tags.get(tag) for tag in (_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE))
    if depth and 8 < depth[0] < 16:
        return int(depth[0])
    top = int(largest[0]) if largest else 0
    return top.bit_length() if 0 < top < 65535 and top & (top + 1) == 0 else None
