"""PNG and TIFF files of 16 bits a channel, and gray ones of 2 and 4 bits, byte by byte: Pillow writes none of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.uint16]


def write_png(path: Path, values: npt.NDArray[Any], significant: int | None = None, bits: int = 16) -> Path:
    """Write gray (H, W) or RGB (H, W, 3) values, with the chunk sBIT if they have ``significant`` bits."""
    channels = 1 if values.ndim == 2 else 3
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, {1: 0, 3: 2}[channels], 0, 0, 0)
    shifts = np.arange(bits - 1, -1, -1)
    rows = b"".join(b"\0" + np.packbits(row[..., None] >> shifts & 1).tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if significant:
        chunks.insert(1, (b"sBIT", bytes([significant] * channels)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))
    return path


def write_tiff(path: Path, values: Values, largest: int | None = None, order: str = "<") -> Path:
    """Write RGB values (H, W, 3) in the byte ``order`` of struct, with MaxSampleValue if ``largest`` is given."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 259: 1, 262: 2, 273: 8, 277: channels, 278: height, 279: len(data)}
    tags |= {281: largest} if largest else {}
    start = 8 + len(data)
    bits_at = start + 2 + 12 * (len(tags) + 1) + 4
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()}
    entries[258] = struct.pack(f"{order}HHII", 258, 3, channels, bits_at)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    path.write_bytes(head + data + directory + struct.pack(f"{order}{channels}H", *[16] * channels))
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
