"""Rendered street scenes with exact labels: endless, license-free data in the classes of CamVid.

A scene is a street seen by a camera behind a windscreen, painted from far to near. Each shape is drawn into the image
and the label map in one call, so the two cannot disagree. As in CamVid, the label of an object covers its holes: the
gaps of a railing, the air between twigs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from ddsm_zoo.data.scenes.canvas import (
    BUILDING,
    FENCE,
    PAVEMENT,
    ROAD,
    SUPERSAMPLE,
    TREE,
    Canvas,
    jitter,
    pick,
    shaded,
)
from ddsm_zoo.data.scenes.objects import LEAVES, placed, tree
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.labels import Color

Array = npt.NDArray[np.uint8]

SAMPLE_SEED = 21  # a sunny street that shows every class

NEAR, FAR = 2.5, 110.0  # meters; the lower edge of the image lies beyond NEAR
SKY_PIXEL = 4  # the sky is smooth: enlarging a coarse image of it is as good, and cheap
# Grain of the surface of each class, in gray levels.
GRAIN = (2, 12, 8, 14, 13, 34, 6, 16, 8, 14, 14)
CONTRAST = [min(255, max(0, round(1.2 * (value - 80) + 76))) for value in range(256)]
BRIGHTS = ((150, 36, 38), (30, 70, 130), (26, 86, 60), (40, 40, 46), (190, 170, 60), (190, 190, 186))
WALLS = (
    (150, 110, 84),
    (176, 150, 116),
    (120, 82, 66),
    (196, 186, 166),
    (142, 134, 122),
    (214, 210, 200),
    (98, 90, 84),
)
ROOFS = ((84, 78, 78), (104, 74, 64), (66, 66, 72), (92, 84, 74))
GLASS = ((44, 50, 58), (62, 70, 78), (34, 36, 40), (128, 140, 150))


@dataclass(frozen=True, kw_only=True)
class Street:
    """Geometry across the street: x in meters of the kerbs and building fronts by side (-1 left, 1 right)."""

    kerb: dict[int, float]
    front: dict[int, float]
    middle: float


def render_scene(seed: int, size: tuple[int, int] = (360, 480)) -> tuple[Array, Array]:
    """Render a street scene with its exact mask.

    The same seed and size give the same scene on every machine with the same releases of NumPy and Pillow.

    Args:
        seed: Number of the scene, 0 or more.
        size: Height and width in pixels, at least 1 x 1.

    Returns:
        RGB image (H, W, 3) and mask (H, W) of CAMVID ids, 255 for ignored pixels.

    Raises:
        ValueError: The size is below 1 x 1 or the seed is negative.
    """
    if min(size) < 1:
        raise ArgumentError.of("size", size, "at least 1 x 1 pixels", shown=f"{size[0]} x {size[1]}")
    rng = np.random.Generator(np.random.PCG64(seed))
    canvas = Canvas(rng, size)
    kerb = {-1: rng.uniform(-4.8, -2.8), 1: rng.uniform(4.6, 7.5)}
    front = {side: kerb[side] + side * rng.uniform(2.6, 5.0) for side in (-1, 1)}
    street = Street(kerb=kerb, front=front, middle=rng.uniform(1.2, 1.8))
    paint_sky(canvas)
    paint_skyline(canvas)
    paint_ground(canvas, street)
    for side in (-1, 1):
        paint_row(canvas, side, street.front[side])
    for z, x, draw in placed(rng, street.kerb):
        draw(canvas, x, z)
    return develop(canvas, size)


def develop(canvas: Canvas, size: tuple[int, int]) -> tuple[Array, Array]:
    """Reduce to the final size and add the effects of a lens and a sensor: grain by surface, uneven light, softness."""
    mask = np.asarray(canvas.labels)[::SUPERSAMPLE, ::SUPERSAMPLE].copy()
    image = np.asarray(canvas.image.reduce(SUPERSAMPLE).point(CONTRAST * 3), np.int16)
    strength = np.full(256, 6, np.float32)
    strength[: len(GRAIN)] = GRAIN
    grain = canvas.rng.random(size, np.float32) + canvas.rng.random(size, np.float32) - 1
    coarse = cloud_field(canvas.rng, size, 60) + cloud_field(canvas.rng, size, 14) - 1
    texture = (grain + 0.7 * coarse) * strength[mask] * (0.35 + 0.65 * canvas.light)
    noisy = np.clip(image + texture.astype(np.int16)[..., None], 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(noisy).filter(ImageFilter.BoxBlur(0.35))).copy(), mask


def cloud_field(rng: np.random.Generator, size: tuple[int, int], cells: int) -> npt.NDArray[np.float32]:
    """Generate smooth noise (H, W) in 0..1 with about ``cells`` bumps along the longer side."""
    height, width = size
    grid = [max(2, round(cells * side / max(size))) for side in size]
    coarse = Image.fromarray(rng.integers(0, 256, grid, np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / np.float32(255)


def paint_sky(canvas: Canvas) -> None:
    height, _ = size = (-(-canvas.image.height // SKY_PIXEL), -(-canvas.image.width // SKY_PIXEL))
    weather = canvas.weather
    fall = np.minimum(1, np.arange(height, dtype=np.float32) * SKY_PIXEL / canvas.horizon)[:, None, None]
    clear = np.asarray(weather.zenith, np.float32) * (1 - fall) + np.asarray(weather.horizon, np.float32) * fall
    cover = 0.6 * cloud_field(canvas.rng, size, 5) + 0.4 * cloud_field(canvas.rng, size, 17)
    cover = np.clip((cover - 0.4) * 3, 0, 1)[..., None] * (1 - 0.6 * fall)
    sky = clear * (1 - cover) + np.asarray(weather.cloud, np.float32) * cover
    canvas.image.paste(Image.fromarray(sky.astype(np.uint8)).resize(canvas.image.size, Image.Resampling.NEAREST))


def paint_skyline(canvas: Canvas) -> None:
    """Paint the far end of the street: roofs and treetops."""
    rng = canvas.rng
    x = -120.0
    while x < 120:
        width = rng.uniform(5, 16)
        if rng.random() < 0.5:
            canvas.box((x, 0, FAR), (x + width, rng.uniform(5, 13), FAR), pick(rng, WALLS), BUILDING)
        else:
            for _ in range(6):
                center = (x + width * rng.random(), rng.uniform(2, 8), FAR)
                canvas.disc(center, (rng.uniform(2, 5), rng.uniform(2, 4)), pick(rng, LEAVES), TREE)
        x += width * 0.9


def paint_row(canvas: Canvas, side: int, front: float) -> None:
    """Paint buildings and gardens along one side, from the end of the street to the camera."""
    rng = canvas.rng
    z, last_garden = FAR, False
    while z > NEAR:
        length = rng.uniform(6, 14)
        near = max(NEAR, z - length)
        last_garden = not last_garden and rng.random() < 0.24
        (garden if last_garden else building)(canvas, side, front + side * rng.uniform(0, 0.8), near, z)
        z = near


def garden(canvas: Canvas, side: int, front: float, near: float, far: float) -> None:
    """Paint grass and trees behind a fence of boards or a wall."""
    rng = canvas.rng
    strip(canvas, (front, front + side * 40), (near, far), (88, 100, 58), TREE)
    canvas.box((front + side * 12, 0, far), (front + side * 40, rng.uniform(5, 9), far), pick(rng, WALLS), BUILDING)
    for step in (0.8, 0.35):
        tree(canvas, front + side * rng.uniform(2.5, 5), near + step * (far - near))
    height = rng.uniform(0.9, 1.9)
    color = pick(rng, ((92, 72, 54), (110, 92, 78), (70, 74, 66), (120, 84, 70)))
    canvas.face([(front, 0, near), (front, 0, far), (front, height, far), (front, height, near)], color, FENCE)
    for z in np.arange(near, far, 0.5).tolist():
        canvas.stroke([(front, 0, z), (front, height, z)], 0.03, jitter(rng, (56, 46, 38)))
    canvas.stroke([(front, height, near), (front, height, far)], 0.05, jitter(rng, color, 0.4))


def building(canvas: Canvas, side: int, front: float, near: float, far: float) -> None:
    """Paint a house front with its gable toward the camera, roof, windows, and a shop or a door below."""
    rng = canvas.rng
    storeys = int(rng.integers(2, 5))
    storey = rng.uniform(2.8, 3.3)
    height = storeys * storey + 0.4
    shine = (1.1 if canvas.sunlit == side else 0.62) if canvas.weather.sunny else 0.85
    wall = shaded(pick(rng, WALLS, 0.3), shine)
    back = front + side * 9
    ridge = (front + side * 4.5, height + rng.uniform(1.5, 3.2))
    canvas.box((front, 0, near), (back, height, near), shaded(wall, 0.85), BUILDING)
    if rng.random() < 0.7:
        roof = shaded(pick(rng, ROOFS), shine)
        canvas.face([(front, height, near), (*ridge, near), (back, height, near)], shaded(wall, 0.8), BUILDING)
        canvas.face([(front, height, near), (front, height, far), (*ridge, far), (*ridge, near)], roof, BUILDING)
        for z in (far, near + 0.6):
            canvas.box(
                (ridge[0] - 0.4, ridge[1] - 0.5, z), (ridge[0] + 0.4, ridge[1] + 1, z), shaded(wall, 0.9), BUILDING
            )
    canvas.face([(front, 0, near), (front, 0, far), (front, height, far), (front, height, near)], wall, BUILDING)
    for y in np.arange(0.3, height, 0.3).tolist() if near < 14 else ():
        canvas.stroke([(front, y, near), (front, y, far)], 0.0, shaded(wall, rng.uniform(0.86, 1.06)))
    canvas.stroke([(front, height, near), (front, height, far)], 0.25, shaded(wall, 0.6), BUILDING)
    shop = rng.random() < 0.5
    for floor in range(1 if shop else 0, storeys):
        windows(canvas, front, near, far, floor * storey + 0.9, shaded((226, 224, 216), shine), has_door=floor == 0)
    if shop:
        shop_front(canvas, front, near, far, shine)


def windows(
    canvas: Canvas, front: float, near: float, far: float, sill: float, frame: Color, *, has_door: bool
) -> None:
    """Paint one storey of windows whose lower edge is at ``sill`` meters."""
    rng = canvas.rng
    bays = max(1, int((far - near) / 2.4))
    if abs(canvas.pixels(front, near) - canvas.pixels(front, far)) < 4 * bays * SUPERSAMPLE:
        return
    pitch = (far - near) / bays
    for bay in range(bays):
        z0, z1 = near + (bay + 0.25) * pitch, near + (bay + 0.75) * pitch
        if has_door and bay == 1:
            pane(canvas, front, (z0, z1), (0, 2.3), pick(rng, BRIGHTS))
            continue
        pane(canvas, front, (z0 - 0.12, z1 + 0.12), (sill - 0.12, sill + 1.6), frame)
        pane(canvas, front, (z0, z1), (sill, sill + 0.72), pick(rng, GLASS))
        pane(canvas, front, (z0, z1), (sill + 0.78, sill + 1.5), pick(rng, GLASS))


def pane(canvas: Canvas, x: float, depth: tuple[float, float], rise: tuple[float, float], color: Color) -> None:
    """Draw a rectangle on a wall along the street."""
    (z0, z1), (y0, y1) = depth, rise
    canvas.face([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], color)


def shop_front(canvas: Canvas, front: float, near: float, far: float, shine: float) -> None:
    rng = canvas.rng
    color = shaded(pick(rng, BRIGHTS), shine)
    pane(canvas, front, (near, far), (0, 3.1), shaded(color, 0.8))
    panes = max(1, int((far - near) / 1.9))
    pitch = (far - near) / panes
    for index in range(panes):
        z = near + index * pitch
        pane(canvas, front, (z + 0.12, z + pitch - 0.12), (0.5, 2.4), pick(rng, GLASS, 0.3))
    pane(canvas, front, (near, far), (2.55, 3.15), color)
    for z in np.arange(near + 0.3 * (far - near), near + 0.7 * (far - near), 0.5).tolist():
        pane(canvas, front, (z, z + 0.3), (2.7, 3.0), (226, 222, 206))


def paint_ground(canvas: Canvas, street: Street) -> None:
    rng = canvas.rng
    gray = rng.uniform(0.85, 1.15)
    asphalt, slabs = shaded((98, 101, 106), gray), shaded((124, 123, 120), gray)
    left, right = street.kerb[-1], street.kerb[1]
    depths = (FAR * 3, 60.0, 30.0, 18.0, 12.0, 8.0, 5.5, NEAR)
    for index, (far, near) in enumerate(pairwise(depths)):  # the road pales toward the horizon
        strip(canvas, (left, right), (near, far), shaded(asphalt, 1.12 - 0.03 * index), ROAD)
    for _ in range(5):
        x, z = rng.uniform(left, right - 1.5), rng.uniform(4, 40)
        strip(canvas, (x, x + rng.uniform(0.4, 2)), (z, z + rng.uniform(0.5, 7)), jitter(rng, asphalt, 0.12))
    for side in (-1, 1):
        kerb, front = street.kerb[side], street.front[side] + side
        strip(canvas, (kerb, front), (NEAR, FAR * 3), slabs, PAVEMENT)
        for z in np.arange(3, 20, 0.9).tolist():
            canvas.stroke([(kerb, 0, z), (front, 0, z)], 0.02, shaded(slabs, 0.85))
        strip(canvas, (kerb, kerb + side * 0.25), (NEAR, FAR * 3), shaded(slabs, 1.2), PAVEMENT)
        strip(canvas, (kerb - side * 0.12, kerb), (NEAR, FAR * 3), shaded(asphalt, 0.6))
    paint_markings(canvas, street)
    if canvas.weather.sunny:
        x = street.front[-canvas.sunlit]
        edge = [(x + canvas.sunlit * rng.uniform(1, 6), 0, z) for z in (60.0, 40, 30, 30, 20, 20, 14, 9, 9, NEAR)]
        canvas.darken([(x, 0, NEAR), (x, 0, 60), *edge], 0.55)


def strip(
    canvas: Canvas, span: tuple[float, float], depth: tuple[float, float], color: Color, label: int | None = None
) -> None:
    """Draw a rectangle on the ground."""
    (x0, x1), (z0, z1) = span, depth
    canvas.face([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], color, label)


def paint_markings(canvas: Canvas, street: Street) -> None:
    rng = canvas.rng
    white, yellow = jitter(rng, (206, 206, 202), 0.1), (170, 150, 74)
    for z in np.arange(rng.uniform(NEAR, 6), 80, 6).tolist():
        strip(canvas, (street.middle - 0.08, street.middle + 0.08), (z, z + 3.4), white)
    if rng.random() < 0.6:
        for side in (-1, 1):
            for inset in (0.3, 0.55):
                x = street.kerb[side] - side * inset
                strip(canvas, (x - 0.05, x + 0.05), (NEAR, 80), yellow)
    kind, z = rng.integers(4), rng.uniform(9, 20)
    if kind == 0:  # a zebra crossing
        for x in np.arange(street.kerb[-1] + 0.4, street.kerb[1] - 0.8, 1.2).tolist():
            strip(canvas, (x, x + 0.6), (z, z + 3), white)
    elif kind == 1:  # an arrow in our lane
        strip(canvas, (-0.1, 0.1), (z, z + 3), white)
        canvas.face([(-0.4, 0, z + 3), (0.4, 0, z + 3), (0, 0, z + 5)], white)
    elif kind == 2:  # a stop line
        strip(canvas, (street.kerb[-1] + 0.3, street.middle), (z, z + 0.4), white)
