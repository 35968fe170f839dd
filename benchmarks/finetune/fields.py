"""Rendered photos of a field with exact labels: soil, crop and weed, data of another kind than streets.

A camera looks straight down on a row of crop among weeds. Both are equally green, so that only the shape of the leaves
and the row tell them apart, as in photos of carrots and weeds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from ddsm_zoo.utils.files import write_text

Array = npt.NDArray[np.uint8]
Fills = tuple[tuple[ImageDraw.ImageDraw, tuple[int, int, int] | int], ...]

NAMES = ("soil", "crop", "weed")
SOIL, CROP, WEED = range(len(NAMES))
_SUPERSAMPLE = 2  # image and labels are drawn larger: the image is averaged, labels are subsampled


def render_field(seed: int, size: tuple[int, int] = (480, 640)) -> tuple[Array, Array]:
    """Render one photo.

    Args:
        seed: The same seed and size give the same photo.
        size: Height and width in pixels.

    Returns:
        Image (H, W, 3) and class ids (H, W), both uint8.
    """
    rng = np.random.default_rng(seed)
    height, width = (side * _SUPERSAMPLE for side in size)
    image = _soil(rng, (height, width))
    labels = Image.new("L", (width, height), SOIL)
    pens = ImageDraw.Draw(image), ImageDraw.Draw(labels)
    hue = rng.uniform(-14, 14, 3)  # of all plants of the photo, whatever their kind
    row, lean = rng.uniform(0.3, 0.7) * height, rng.uniform(-0.15, 0.15)
    unit = height / 12 * rng.uniform(0.8, 1.2)
    plants = [
        (CROP, x + rng.normal(0, unit / 3)) for x in np.arange(-unit, width + unit, 2.6 * unit) if rng.random() < 0.85
    ]
    plants += [(WEED, rng.uniform(0, width)) for _ in range(rng.integers(4, 16))]
    for index in rng.permutation(len(plants)):
        kind, x = plants[index]
        y = row + lean * (x - width / 2) + rng.normal(0, unit / 4) if kind == CROP else rng.uniform(0, height)
        color = np.array((86, 128, 62)) + hue + rng.normal(0, 10, 3)
        draw = _crop if kind == CROP else _weed
        draw(rng, pens, (x, y), unit * rng.uniform(0.6, 1.3), color)
    return _photo(rng, image, size), np.asarray(labels)[::_SUPERSAMPLE, ::_SUPERSAMPLE].copy()


def write_fields(root: Path, train: int = 40, val: int = 20, size: tuple[int, int] = (480, 640)) -> None:
    """Write a data set for ``folder:ROOT``: ``images/`` and ``masks/`` with ``train`` and ``val``, and labels.json."""
    for number in range(train + val):
        split = "train" if number < train else "val"
        for kind, pixels in zip(("images", "masks"), render_field(number, size), strict=True):
            path = root / kind / split / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    write_text(root / "labels.json", json.dumps({"names": NAMES}))


def _soil(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Draw soil: clods of several sizes, stones, and dry leaves of the plants' shapes."""
    height, width = size
    relief = np.zeros(size, np.float32)
    for cell in (4, 10, 28, 90, 300):
        coarse = rng.normal(0, 1, (height // cell + 2, width // cell + 2)).astype(np.float32)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        relief += np.asarray(layer) * (6 + 2.5 * math.log(cell))
    base = np.array((118, 98, 78)) + rng.normal(0, 5, 3) + rng.normal(0, 12)
    soil = Image.fromarray(np.clip(base + relief[..., None], 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(soil)
    for _ in range(rng.integers(10, 60)):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(3, 16)
        gray = rng.uniform(90, 190)
        pen.polygon(_ring(rng, (x, y), radius), fill=(int(gray), int(gray * 0.96), int(gray * 0.9)))
    for _ in range(rng.integers(0, 12)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        pen.polygon(_leaf((x, y), rng.uniform(0, 2 * math.pi), rng.uniform(20, 60), 0.2), fill=(158, 132, 88))
    return soil


def _crop(
    rng: np.random.Generator,
    pens: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw],
    center: tuple[float, float],
    size: float,
    color: npt.NDArray[np.float64],
) -> None:
    """Draw a crop plant: fronds of many narrow leaflets in pairs along a stalk."""
    for angle in rng.uniform(0, 2 * math.pi) + np.arange(rng.integers(4, 8)) * 2.4:
        length, bend = size * rng.uniform(0.8, 1.5), rng.normal(0, 0.3)
        x, y = center
        for step in np.linspace(0.2, 1.0, 7):
            angle += bend / 7
            nearer = (x, y)
            x, y = x + math.cos(angle) * length / 7, y + math.sin(angle) * length / 7
            for pen, fill in _fills(pens, _shade(rng, color), CROP):
                pen.line([nearer, (x, y)], fill=fill, width=max(2, round(size / 18)))
                for side in (-1, 1):
                    leaflet = _leaf((x, y), angle + side * 0.8, size * 0.42 * (1.25 - step), 0.2)
                    pen.polygon(leaflet, fill=fill)


def _weed(
    rng: np.random.Generator,
    pens: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw],
    center: tuple[float, float],
    size: float,
    color: npt.NDArray[np.float64],
) -> None:
    """Draw a weed: a rosette of broad leaves, or a tuft of long blades."""
    grass = rng.random() < 0.3
    size *= rng.uniform(0.4, 1.1)
    for angle in rng.uniform(0, 2 * math.pi) + np.arange(rng.integers(3, 9)) * 2.4:
        width, length = (0.07, 1.5) if grass else (rng.uniform(0.25, 0.5), 0.9)
        leaf = _leaf(center, angle + rng.normal(0, 0.2), size * length * rng.uniform(0.7, 1.2), width)
        for pen, fill in _fills(pens, _shade(rng, color), WEED):
            pen.polygon(leaf, fill=fill)


def _fills(pens: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw], color: tuple[int, int, int], index: int) -> Fills:
    """Pair the pens of image and labels with what each draws, so that the two cannot disagree."""
    return (pens[0], color), (pens[1], index)


def _shade(rng: np.random.Generator, color: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = np.clip(color * rng.uniform(0.75, 1.25), 0, 255)
    return int(red), int(green), int(blue)


def _leaf(base: tuple[float, float], angle: float, length: float, width: float) -> list[tuple[float, float]]:
    """Outline of a leaf from its base, ``width`` relative to its length."""
    along = np.concatenate([np.linspace(0, 1, 9), np.linspace(1, 0, 9)[1:]])
    across = width * np.sin(np.pi * along**0.8) * np.where(np.arange(len(along)) < 9, 1, -1)
    cos, sin = math.cos(angle), math.sin(angle)
    xs, ys = base[0] + length * (cos * along - sin * across), base[1] + length * (sin * along + cos * across)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _ring(rng: np.random.Generator, center: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """Outline of a stone."""
    angles = np.linspace(0, 2 * math.pi, 9)[:-1]
    radii = radius * rng.uniform(0.7, 1.2, 8)
    return [(center[0] + r * math.cos(a), center[1] + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]


def _photo(rng: np.random.Generator, image: Image.Image, size: tuple[int, int]) -> Array:
    """Take the photo: focus, light that falls off to one side, contrast and noise."""
    blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2.2)))
    pixels = np.asarray(blurred.resize((size[1], size[0]), Image.Resampling.BOX), np.float32)
    left, right = rng.uniform(0.75, 1.25, 2)
    slope = np.linspace(left, right, size[1])[None, :, None]
    lit = pixels * slope * rng.uniform(0.8, 1.2) + rng.normal(0, rng.uniform(2, 8), pixels.shape)
    taken: Array = np.clip(lit, 0, 255).astype(np.uint8)
    return taken
