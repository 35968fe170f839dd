"""Areas as tools store them - polygons, run lengths, boxes, ellipses, bitmaps - drawn as pixels.

A pixel belongs to an area if the area holds its center, as in COCO's tools, which draw the polygons.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ddsm_zoo.data.importing.annotations import Bitmap, Findings, ImportOptions, Paint
from ddsm_zoo.errors import PackageError

Points = npt.NDArray[np.float64]

# COCO's tools walk along every edge, so a wild coordinate would take all memory
_FARTHEST = 1e5

# Line for boxes, the same for every format
NO_MASK = "boxes without a mask (--boxes fill draws them as filled rectangles)"


class BadShape(ValueError):
    """Shape without an area, or beyond all images."""


@contextlib.contextmanager
def counted(findings: Findings, where: str) -> Iterator[None]:
    """Count a BadShape inside the block among what was left out."""
    try:
        yield
    except BadShape as error:
        findings.left_out.add(str(error), where)


def require_boxes(options: ImportOptions) -> None:
    """Raise BadShape unless boxes without a mask are drawn."""
    if not options.boxes:
        raise BadShape(NO_MASK)


def points_of(flat: Any) -> Points:
    """Convert [x, y, x, y, ...] to points (N, 2). Raises BadShape for fewer than three, and for odd or wild numbers."""
    values = np.asarray(flat, dtype=np.float64).ravel()
    if len(values) % 2:
        raise BadShape("polygons with an odd number of coordinates")
    if len(values) < 6:
        raise BadShape("polygons with fewer than three points")
    if not (np.isfinite(values).all() and np.abs(values).max() < _FARTHEST):
        raise BadShape("polygons far outside of the image")
    return values.reshape(-1, 2)


def polygons(parts: Sequence[Points]) -> Paint:
    """Fill the union of polygons, in pixels. Raises BadShape for fractions of the image instead."""
    values = np.concatenate(parts)
    if values.min() >= 0 and values.max() <= 1 and (values % 1).any():
        raise BadShape("coordinates from 0 to 1, expected pixels")
    return _filled(parts)


def _filled(parts: Sequence[Points]) -> Paint:
    def paint(height: int, width: int) -> Bitmap:
        coco = _coco()
        packed = coco.merge(coco.frPyObjects([part.ravel().tolist() for part in parts], height, width))
        return coco_rle(packed["counts"].decode(), (height, width))

    return paint


def is_rectangle(part: Points) -> bool:
    """Return True for the corners of a rectangle in turn, at any angle: its diagonals have one length and center."""
    corners = part[:-1] if len(part) == 5 and (part[0] == part[-1]).all() else part
    if len(corners) != 4:
        return False
    first, second = corners[2] - corners[0], corners[3] - corners[1]
    near = 1e-3 * np.abs(first).max()
    centered = np.abs(corners[0] + corners[2] - corners[1] - corners[3]).max() <= near
    return bool(centered and abs(np.hypot(*first) - np.hypot(*second)) <= near)


def normalized_polygon(part: Points) -> Paint:
    """Fill a polygon in fractions of width and height."""
    return lambda height, width: _filled([part * (width, height)])(height, width)


def box(left: float, top: float, right: float, bottom: float, degrees: float = 0.0) -> Paint:
    """Fill a rectangle, turned clockwise around its center."""
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float64)
    center = corners.mean(0)
    turned = center + (corners - center) @ _rotation(degrees).T
    return polygons([points_of(turned)])


def ellipse(center: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> Paint:
    """Fill an ellipse, turned clockwise around its center."""
    if min(radii) <= 0 or not np.isfinite([*center, *radii, degrees]).all():
        raise BadShape("ellipses without an area")

    def paint(height: int, width: int) -> Bitmap:
        y, x = np.mgrid[:height, :width] + 0.5
        offsets = np.stack([x - center[0], y - center[1]], -1) @ _rotation(degrees)
        inside: Bitmap = ((offsets / radii) ** 2).sum(-1) <= 1
        return inside

    return paint


def whole(decode: Callable[[], Bitmap]) -> Paint:
    """Use a bitmap of the whole image, which is decoded when it is drawn: together they could fill the memory."""

    def paint(height: int, width: int) -> Bitmap:
        pixels = decode()
        if pixels.shape != (height, width):
            raise BadShape("areas of another size than their image")
        return pixels

    return paint


def bitmap(decode: Callable[[], Bitmap], left: int, top: int) -> Paint:
    """Place a bitmap in the image, decoded when it is drawn. Parts outside of the image are cut off."""

    def paint(height: int, width: int) -> Bitmap:
        pixels = decode()
        placed = np.zeros((height, width), bool)
        part = pixels[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
        y, x = max(0, top), max(0, left)
        placed[y : y + part.shape[0], x : x + part.shape[1]] = part
        return placed

    return paint


def coco_rle(counts: str | Sequence[int], size: Sequence[int]) -> Bitmap:
    """Decode COCO's run lengths, compressed or not, which go down the columns.

    By hand, because pycocotools reads past the end of its memory where the runs do not add up to the image.

    Args:
        counts: Numbers of pixels, outside and inside in turn.
        size: Height and width.

    Raises:
        BadShape: The runs do not add up to the image.
    """
    height, width = map(int, size)
    return run_lengths(_decompress(counts) if isinstance(counts, str) else counts, width, height).T


def run_lengths(counts: Sequence[int], height: int, width: int) -> Bitmap:
    """Decode run lengths that go along the rows, outside and inside in turn. Raises BadShape if they do not add up."""
    lengths = np.asarray(counts, dtype=np.int64).ravel()
    if height < 1 or width < 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise BadShape("run lengths that do not add up to their size")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)


def _decompress(text: str) -> list[int]:
    """Decode COCO's compressed run lengths: 5 bits in a character, the fourth and later ones less the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise BadShape("run lengths that are no RLE")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) >> 4 << shift  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _rotation(degrees: float) -> Points:
    """Return the matrix (2, 2) that turns (x, y) clockwise, as y points down."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def _coco() -> Any:
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise PackageError.needed("polygons need", "pycocotools", "formats") from error
    return mask
