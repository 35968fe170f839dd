"""Canvas of rendered scenes: a camera in a street, its light, its image and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ddsm_zoo.labels import CAMVID, Color

Point = tuple[float, ...]

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(len(CAMVID))
IGNORE = CAMVID.ignore_index

EYE = 1.5  # meters from the road up to the camera
# Image and labels are drawn at twice the size. At the end the image is averaged (antialiasing), labels subsampled.
SUPERSAMPLE = 2


@dataclass(frozen=True, kw_only=True)
class Weather:
    """Colors of the sky overhead, at the horizon and of its clouds, and the light on the street."""

    zenith: Color
    horizon: Color
    cloud: Color
    light: float
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    sunny: bool = False


WEATHERS = (
    Weather(zenith=(236, 243, 248), horizon=(252, 253, 253), cloud=(222, 228, 234), light=0.8),
    Weather(zenith=(150, 190, 232), horizon=(238, 246, 250), cloud=(250, 251, 252), light=1.0, sunny=True),
    Weather(zenith=(196, 206, 214), horizon=(240, 244, 244), cloud=(236, 240, 244), light=0.7),
    Weather(
        zenith=(214, 220, 226),
        horizon=(250, 244, 232),
        cloud=(250, 240, 226),
        light=0.9,
        tint=(1.06, 1.0, 0.9),
        sunny=True,
    ),
    Weather(zenith=(92, 104, 112), horizon=(196, 206, 208), cloud=(150, 160, 164), light=0.4, tint=(0.95, 1.0, 1.05)),
)


class Canvas:
    """Image and labels of a scene. World points are (x right, y up from the road, z ahead) in meters."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        height, width = (side * SUPERSAMPLE for side in size)
        self.rng = rng
        self.weather = WEATHERS[rng.integers(len(WEATHERS))]
        self.light = self.weather.light * rng.uniform(0.85, 1.15)
        self.sunlit = int(rng.choice((-1, 1)))  # the side with sunlit buildings
        self.focal = rng.uniform(1.05, 1.25) * max(height, 0.75 * width)
        self.center = width * rng.uniform(0.42, 0.58)
        self.horizon = height * rng.uniform(0.49, 0.55)
        self.image = Image.new("RGB", (width, height))
        self.labels = Image.new("L", (width, height), SKY)
        self._pens = ImageDraw.Draw(self.image), ImageDraw.Draw(self.labels)

    def project(self, x: float, y: float, z: float) -> tuple[int, int]:
        return round(self.center + self.focal * x / z), round(self.horizon - self.focal * (y - EYE) / z)

    def pixels(self, length: float, z: float) -> float:
        return self.focal * length / z

    def lit(self, color: Color, z: float) -> Color:
        """Return the color under this light, paled by the haze of ``z`` meters of air."""
        haze = min(0.5, z / 260)
        light, (red, green, blue), air = self.light * (1 - haze), self.weather.tint, self.weather.horizon
        return (
            min(255, int(color[0] * light * red + air[0] * haze)),
            min(255, int(color[1] * light * green + air[1] * haze)),
            min(255, int(color[2] * light * blue + air[2] * haze)),
        )

    def face(self, corners: Sequence[Point], color: Color | None, label: int | None = None) -> None:
        """Draw a flat polygon. Without a color only labels change. Without a label only the image does."""
        points = [self.project(*corner) for corner in corners]
        if color is not None:
            self._pens[0].polygon(points, fill=self.lit(color, corners[0][2]))
        if label is not None:
            self._pens[1].polygon(points, fill=label)

    def box(self, low: Point, high: Point, color: Color, label: int | None = None) -> None:
        """Draw an upright rectangle facing the camera at depth ``low[2]``."""
        (x0, y0, z), (x1, y1, _) = low, high
        self.face([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], color, label)

    def disc(self, center: Point, radius: tuple[float, float], color: Color | None, label: int | None = None) -> None:
        x, y, z = center
        box = (*self.project(x - radius[0], y + radius[1], z), *self.project(x + radius[0], y - radius[1], z))
        if color is not None:
            self._pens[0].ellipse(box, fill=self.lit(color, z))
        if label is not None:
            self._pens[1].ellipse(box, fill=label)

    def stroke(self, points: Sequence[Point], thickness: float, color: Color, label: int | None = None) -> None:
        z = points[0][2]
        width = max(1, round(self.pixels(thickness, z)))
        line = [self.project(*point) for point in points]
        self._pens[0].line(line, fill=self.lit(color, z), width=width)
        if label is not None:
            self._pens[1].line(line, fill=label, width=width)

    def darken(self, corners: Sequence[Point], factor: float) -> None:
        """Draw a shadow over everything painted so far."""
        stencil = Image.new("L", self.image.size)
        ImageDraw.Draw(stencil).polygon([self.project(*corner) for corner in corners], fill=255)
        self.image.paste(self.image.point([int(value * factor) for value in range(256)] * 3), mask=stencil)


def jitter(rng: np.random.Generator, color: Color, amount: float = 0.15) -> Color:
    """Return the color, randomly a little lighter or darker."""
    return shaded(color, rng.uniform(1 - amount, 1 + amount))


def pick(rng: np.random.Generator, colors: Sequence[Color], amount: float = 0.15) -> Color:
    return jitter(rng, colors[int(rng.integers(len(colors)))], amount)


def shaded(color: Color, factor: float) -> Color:
    return min(255, int(color[0] * factor)), min(255, int(color[1] * factor)), min(255, int(color[2] * factor))
