"""PNG files written from top to bottom, for images that are never in memory as a whole."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.unsignedinteger[Any]]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # the filter that stores the difference to the row above
_LEVEL = 2  # of compression: a third of the time of the usual 6, for photos a tenth larger


def write_png(path: Path, bands: Iterable[Rows]) -> None:
    """Write an image from bands of its rows, all (h, W) for gray or all (h, W, 3) for RGB; at least one.

    Bands of uint16 make an image of 16 bits a channel.
    """
    packer = zlib.compressobj(_LEVEL)
    above: npt.NDArray[np.uint8] | None = None
    height = 0
    with path.open("wb") as file:
        file.seek(len(_SIGNATURE) + len(_header(1, 1, 3)))
        for band in bands:
            # the filter is of bytes, the first of each value the higher one
            rows = np.frombuffer(band.astype(f">u{band.itemsize}").tobytes(), np.uint8).reshape(len(band), -1)
            before = np.zeros_like(rows[:1]) if above is None else above
            difference = rows - np.concatenate((before, rows[:-1]))
            filtered = np.pad(difference, ((0, 0), (1, 0)), constant_values=_UP)
            file.write(_chunk(b"IDAT", packer.compress(filtered.tobytes())))
            height, above = height + len(band), rows[-1:]
        assert above is not None
        file.write(_chunk(b"IDAT", packer.flush()))
        file.write(_chunk(b"IEND", b""))
        file.seek(0)
        file.write(_SIGNATURE + _header(band.shape[1], height, band.ndim, 8 * band.itemsize))


def _header(width: int, height: int, dimensions: int, bits: int = 8) -> bytes:
    color = {2: 0, 3: 2}[dimensions]  # gray, RGB
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
