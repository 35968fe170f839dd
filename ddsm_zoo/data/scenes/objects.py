"""Objects of a rendered street: one function per kind of object, and the table of their placements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ddsm_zoo.data.scenes.canvas import (
    BICYCLIST,
    CAR,
    FENCE,
    IGNORE,
    PEDESTRIAN,
    POLE,
    SIGN,
    TREE,
    Canvas,
    jitter,
    pick,
    shaded,
)
from ddsm_zoo.labels import Color

LEAVES = ((70, 84, 48), (86, 92, 56), (58, 70, 44), (96, 88, 60), (74, 70, 52))
CARS = ((178, 182, 186), (34, 36, 40), (40, 56, 92), (120, 28, 30), (206, 208, 208), (38, 60, 52), (96, 100, 106))
CLOTHES = ((36, 38, 46), (52, 50, 52), (64, 44, 40), (44, 56, 76), (96, 92, 88), (110, 40, 40), (30, 30, 32))
SKIN = ((196, 150, 124), (150, 108, 84), (96, 68, 54))
METAL = ((70, 72, 74), (104, 106, 106), (44, 48, 46), (128, 130, 126))
DARK = (22, 22, 24)

# Near half of a hatchback's outline, seen from its rear or its front: meters along the car, meters up.
REAR = ((0.0, 0.3), (0.0, 0.9), (0.5, 1.42), (2.4, 1.42))
FRONT = ((0.0, 0.3), (0.0, 0.72), (1.1, 0.95), (1.9, 1.42))

CIRCLE = ((1.0, 0.0), (0.87, 0.5), (0.5, 0.87), (0.0, 1.0), (-0.5, 0.87), (-0.87, 0.5),
          (-1.0, 0.0), (-0.87, -0.5), (-0.5, -0.87), (0.0, -1.0), (0.5, -0.87), (0.87, -0.5))  # fmt: skip

Outline = Sequence[tuple[float, float]]
Draw = Callable[[Canvas, float, float], None]


def tree(canvas: Canvas, x: float, z: float) -> None:
    """Draw a trunk under a crown of leaves, or in winter of twigs."""
    rng = canvas.rng
    height, radius = rng.uniform(5, 10), rng.uniform(1.6, 3.0)
    bark = pick(rng, ((62, 54, 46), (50, 48, 44)))
    canvas.box((x - 0.16, 0, z), (x + 0.16, height * 0.6, z), bark, TREE)
    middle = height * 0.65
    if rng.random() < 0.35:
        twigs(canvas, (x, middle, z), (radius, height * 0.36), bark)
        return
    leaf = pick(rng, LEAVES)
    count = detail(z, 110)
    for (u, v), (wide, high, shine) in zip(in_disc(rng, count), rng.random((count, 3)).tolist(), strict=False):
        blob = ((0.1 + 0.2 * wide) * radius, (0.08 + 0.14 * high) * radius)
        color = shaded(leaf, 0.55 + 0.3 * v + 0.7 * shine)  # lighter toward the sky
        canvas.disc((x + u * radius, middle + v * height * 0.32, z), blob, color, TREE)


def twigs(canvas: Canvas, center: tuple[float, float, float], reach: tuple[float, float], bark: Color) -> None:
    x, y, z = center
    for u, v in in_disc(canvas.rng, detail(z, 45)):
        tip = (x + u * reach[0], y + v * reach[1], z)
        fork = (x + u * reach[0] * 0.4, y + (v * 0.5 - 0.3) * reach[1], z)
        canvas.stroke([(x, y - reach[1], z), fork, tip], 0.05, jitter(canvas.rng, bark, 0.3), TREE)
        canvas.disc(tip, (reach[0] * 0.24, reach[1] * 0.2), None, TREE)
        zigzag = [(tip[0] + du, tip[1] + dv, z) for du, dv in canvas.rng.uniform(-0.5, 0.5, (5, 2)).tolist()]
        canvas.stroke(zigzag, 0.02, bark, TREE)


def detail(z: float, most: int) -> int:
    """Return the number of strokes for an object ``z`` meters away."""
    return max(most // 8, min(most, round(most * 14 / z)))


def in_disc(rng: np.random.Generator, count: int) -> list[list[float]]:
    """Draw points evenly over the unit disc, about three quarters of ``count``."""
    return [[u, v] for u, v in rng.uniform(-1, 1, (count, 2)).tolist() if u * u + v * v < 1]


def lamp_post(canvas: Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    height, color = rng.uniform(6.5, 9), pick(rng, METAL)
    canvas.face([(x - 0.08, 0, z), (x + 0.08, 0, z), (x + 0.04, height, z), (x - 0.04, height, z)], color, POLE)
    canvas.box((x - 0.1, 0, z), (x + 0.1, 1.4, z), color, POLE)
    arm = x + (-1 if x > 0 else 1) * rng.uniform(0.9, 1.8)  # over the road
    canvas.stroke([(x, height, z), (arm, height + 0.3, z)], 0.1, color, POLE)
    canvas.box((arm - 0.3, height + 0.2, z), (arm + 0.3, height + 0.38, z), shaded(color, 1.4), POLE)


def bollard(canvas: Canvas, x: float, z: float) -> None:
    color = pick(canvas.rng, (*METAL, (30, 30, 32)))
    canvas.box((x - 0.08, 0, z), (x + 0.08, 1.05, z), color, POLE)
    canvas.box((x - 0.08, 0.8, z), (x + 0.08, 0.9, z), (210, 208, 200))


def traffic_light(canvas: Canvas, x: float, z: float) -> None:
    canvas.box((x - 0.05, 0, z), (x + 0.05, 2.4, z), pick(canvas.rng, METAL), POLE)
    canvas.box((x - 0.28, 2.2, z), (x + 0.28, 3.4, z), (20, 22, 22), SIGN)
    lamps = ((230, 40, 30), (236, 160, 30), (40, 220, 130))
    lit = canvas.rng.integers(3)
    for index, lamp in enumerate(lamps):
        color = lamp if index == lit else shaded(lamp, 0.25)
        canvas.disc((x, 3.2 - 0.38 * index, z), (0.14, 0.14), color)


def traffic_sign(canvas: Canvas, x: float, z: float) -> None:
    """Draw a round, a triangular or a written sign on a post."""
    rng = canvas.rng
    canvas.box((x - 0.04, 0, z), (x + 0.04, 2.3, z), pick(rng, METAL), POLE)
    red, white, blue = (170, 34, 38), (214, 214, 210), (34, 72, 150)
    y, kind = rng.uniform(2.3, 2.8), rng.integers(4)
    if kind == 0:
        canvas.disc((x, y, z), (0.4, 0.4), red, SIGN)
        canvas.disc((x, y, z), (0.29, 0.29), white)
        canvas.box((x - 0.16, y - 0.08, z), (x + 0.16, y + 0.08, z), DARK)
    elif kind == 1:
        canvas.disc((x, y, z), (0.4, 0.4), blue, SIGN)
        canvas.stroke([(x - 0.2, y + 0.2, z), (x + 0.1, y - 0.2, z)], 0.1, white)
    elif kind == 2:
        canvas.face([(x - 0.5, y - 0.4, z), (x + 0.5, y - 0.4, z), (x, y + 0.5, z)], red, SIGN)
        canvas.face([(x - 0.3, y - 0.29, z), (x + 0.3, y - 0.29, z), (x, y + 0.24, z)], white)
    else:
        ground = pick(rng, (blue, (30, 90, 62), white, (196, 168, 50)))
        ink = DARK if sum(ground) > 380 else white
        canvas.box((x - 0.7, y - 0.5, z), (x + 0.7, y + 0.5, z), ground, SIGN)
        for row in (-0.3, 0.0, 0.3):
            canvas.box((x - 0.55, y + row - 0.07, z), (x + rng.uniform(0, 0.5), y + row + 0.07, z), ink)


def railing(canvas: Canvas, x: float, z: float) -> None:
    """Draw posts and bars along the kerb, from ``z`` toward the camera. The label covers the gaps."""
    near, color = max(4.0, z - canvas.rng.uniform(6, 12)), pick(canvas.rng, METAL)
    canvas.face([(x, 0, near), (x, 0, z), (x, 1.05, z), (x, 1.05, near)], None, FENCE)
    for bar in np.arange(near, z, 0.16).tolist():
        canvas.stroke([(x, 0.1, bar), (x, 1.0, bar)], 0.03, color, FENCE)
    for y in (0.1, 1.02):
        canvas.face([(x, y, near), (x, y, z), (x, y + 0.06, z), (x, y + 0.06, near)], color, FENCE)


def litter_bin(canvas: Canvas, x: float, z: float) -> None:
    """Draw a litter bin, which is none of the eleven classes."""
    canvas.box((x - 0.3, 0, z), (x + 0.3, 1.1, z), pick(canvas.rng, (DARK, (40, 60, 48), (60, 60, 62))), IGNORE)
    canvas.box((x - 0.2, 0.78, z), (x + 0.2, 0.94, z), (10, 10, 10))


def rear_car(canvas: Canvas, x: float, z: float) -> None:
    car(canvas, x, z, REAR, (176, 26, 24), (214, 180, 60))


def front_car(canvas: Canvas, x: float, z: float) -> None:
    car(canvas, x, z, FRONT, (226, 226, 214), (220, 220, 214))


def parked_car(canvas: Canvas, x: float, z: float) -> None:
    (rear_car if canvas.rng.random() < 0.6 else front_car)(canvas, x, z)


def car(canvas: Canvas, x: float, z: float, near_end: Outline, lamp: Color, plate: Color) -> None:
    """Draw a car whose near end faces the camera: first the visible flank, then body, window and roof."""
    rng = canvas.rng
    van = rng.random() < 0.12
    length, tall = (5.4, rng.uniform(1.3, 1.7)) if van else (4.2, rng.uniform(0.96, 1.12))
    near_end = REAR if van else near_end
    far_end = [(length - along, up) for along, up in reversed(FRONT if near_end is REAR else REAR)]
    outline = [(along, up * tall if up > 0.5 else up) for along, up in (*near_end, *far_end)]
    body, half = pick(rng, CARS, 0.1), 0.86
    belt, waist = 1.2 * tall, {True: half - 0.14, False: half}  # the car narrows above the belt
    shadow = [(x - 1, 0, z - 0.3), (x + 1, 0, z - 0.3), (x + 1, 0, z + length), (x - 1, 0, z + length)]
    canvas.face(shadow, (34, 35, 38))
    seen = -1 if x > 0 else 1
    flank = [(x + seen * waist[up > belt], up, z + along) for along, up in outline]
    canvas.face(flank, shaded(body, 0.75), CAR)
    roof = [along for along, up in outline if up > belt]
    start, pitch = min(roof) - 0.1, (max(roof) - min(roof) + 0.2) / 2
    for index in (0, 1):
        z0, z1 = z + start + pitch * index + 0.08, z + start + pitch * (index + 1) - 0.08
        low, high = (x + seen * half, 0.95 * tall), (x + seen * waist[True], 1.34 * tall)
        canvas.face([(*low, z0), (*low, z1), (*high, z1), (*high, z0)], (38, 42, 48))
    for along in (0.75, length - 0.8):
        wheel(canvas, x + seen * half, z + along)
    for (a, u), (b, v) in reversed(list(pairwise(outline[:4]))):
        bottom, top = waist[u > belt], waist[v > belt]
        quad = [(x - bottom, u, z + a), (x + bottom, u, z + a), (x + top, v, z + b), (x - top, v, z + b)]
        canvas.face(quad, body, CAR)
        if v > belt > u:
            inset = [(x + (cx - x) * 0.88, cy + (0.05 if cy == u else -0.06), cz) for cx, cy, cz in quad]
            canvas.face(inset, pick(rng, ((40, 46, 52), (90, 100, 108), (30, 32, 36))))
    car_end(canvas, x, z, outline[1][1], half, body, lamp, plate)


def car_end(
    canvas: Canvas, x: float, z: float, top: float, half: float, body: Color, lamp: Color, plate: Color
) -> None:
    for sign in (-1, 1):
        tyre, light = x + sign * (half - 0.1), x + sign * (half - 0.16)
        canvas.box((tyre - 0.11, 0, z), (tyre + 0.11, 0.34, z), DARK, CAR)
        canvas.box((light - 0.13, top - 0.28, z), (light + 0.13, top - 0.06, z), lamp)
    canvas.box((x - half, 0.28, z), (x + half, 0.46, z), shaded(body, 0.6))
    canvas.box((x - 0.27, 0.48, z), (x + 0.27, 0.6, z), plate)


def wheel(canvas: Canvas, x: float, z: float) -> None:
    """Draw a wheel on a plane along the street."""
    for radius, color in ((0.33, DARK), (0.18, (120, 122, 124))):
        rim = [(x, 0.33 + radius * v, z + radius * u) for u, v in CIRCLE]
        canvas.face(rim, color, CAR)


def pedestrian(canvas: Canvas, x: float, z: float) -> None:
    """Draw a walking person, seen from any side."""
    rng = canvas.rng
    size, stride, width = rng.uniform(0.88, 1.06), rng.uniform(0.02, 0.3), rng.uniform(0.16, 0.23)
    coat, trousers = pick(rng, CLOTHES), pick(rng, CLOTHES)
    for foot in (-stride, stride):
        leg = [(x, 0.9 * size, z), (x + foot * 0.4, 0.48 * size, z), (x + foot, 0.04, z)]
        canvas.stroke(leg, 0.15, trousers, PEDESTRIAN)
        canvas.box((x + foot - 0.09, 0, z), (x + foot + 0.12, 0.08, z), DARK, PEDESTRIAN)
    shoulders, hips = 1.44 * size, 0.82 * size
    chest = [(x + edge * width, up, z) for edge, up in ((-0.8, hips), (0.8, hips), (1, shoulders), (-1, shoulders))]
    canvas.face(chest, coat, PEDESTRIAN)
    for hand in (-1, 1):
        reach = x + hand * (width + 0.05)
        arm = [(x + hand * width * 0.9, shoulders - 0.04, z), (reach, 1.1 * size, z), (reach, 0.82 * size, z)]
        canvas.stroke(arm, 0.1, shaded(coat, 0.85), PEDESTRIAN)
    canvas.disc((x, 1.6 * size, z), (0.11, 0.14), pick(rng, SKIN), PEDESTRIAN)
    canvas.disc((x, 1.66 * size, z), (0.115, 0.1), pick(rng, ((40, 32, 28), (84, 64, 44), (20, 20, 20))), PEDESTRIAN)


def cyclist(canvas: Canvas, x: float, z: float) -> None:
    """Draw a rider on a bicycle, from behind (``turn`` near 0) to the side."""
    rng = canvas.rng
    turn = rng.choice((-1, 1)) * rng.uniform(0.12, 0.9)
    coat, trousers = pick(rng, (*CLOTHES, (170, 180, 50))), pick(rng, CLOTHES)

    def at(u: float, v: float) -> tuple[float, float, float]:
        return x + u * turn, v, z

    for hub in (-0.52, 0.52):
        canvas.disc(at(hub, 0.34), (max(0.03, 0.34 * abs(turn)), 0.34), DARK, BICYCLIST)
        canvas.disc(at(hub, 0.34), (max(0.01, 0.28 * abs(turn)), 0.28), (84, 86, 88))
    frame = [at(-0.52, 0.34), at(-0.15, 0.8), at(0.4, 0.85), at(0, 0.32), at(-0.15, 0.8)]
    canvas.stroke(frame, 0.05, pick(rng, CARS), BICYCLIST)
    canvas.stroke([at(0.52, 0.34), at(0.4, 1.05)], 0.05, DARK, BICYCLIST)
    canvas.box((x + 0.4 * turn - 0.25, 1.02, z), (x + 0.4 * turn + 0.25, 1.07, z), DARK, BICYCLIST)
    for knee, foot in ((0.25, 0.15), (0.12, 0.5)):
        sway = 0.1 if foot > 0.3 else -0.1
        leg = [at(-0.15, 0.92), (x + knee * turn + sway, 0.68, z), (x + sway, foot, z)]
        canvas.stroke(leg, 0.15, trousers, BICYCLIST)
    seat, lean = x - 0.15 * turn, x + 0.2 * turn
    chest = [(seat - 0.17, 0.88, z), (seat + 0.17, 0.88, z), (lean + 0.22, 1.42, z), (lean - 0.22, 1.42, z)]
    canvas.face(chest, coat, BICYCLIST)
    for hand in (-0.2, 0.2):
        arm = [(lean + hand, 1.36, z), (x + 0.4 * turn + hand, 1.06, z)]
        canvas.stroke(arm, 0.1, shaded(coat, 0.85), BICYCLIST)
    canvas.disc((x + 0.28 * turn, 1.58, z), (0.11, 0.14), pick(rng, SKIN), BICYCLIST)
    canvas.disc((x + 0.28 * turn, 1.66, z), (0.13, 0.09), pick(rng, (DARK, (180, 182, 184), (150, 40, 40))), BICYCLIST)


@dataclass(frozen=True)
class Placement:
    """Number and place of an object: meters ahead, and meters from the kerb away from the road."""

    draw: Draw
    count: tuple[int, int]
    depth: tuple[float, float]
    offset: tuple[float, float]
    sides: tuple[int, ...] = (-1, 1)


PLACEMENTS = (
    Placement(tree, (0, 3), (12, 60), (1.2, 2.0)),
    Placement(lamp_post, (1, 3), (9, 60), (0.3, 0.6)),
    Placement(bollard, (0, 2), (6, 25), (0.25, 0.5)),
    Placement(traffic_light, (0, 1), (10, 30), (0.4, 0.7)),
    Placement(traffic_sign, (1, 3), (8, 35), (0.4, 1.0)),
    Placement(railing, (0, 1), (13, 30), (0.2, 0.3)),
    Placement(litter_bin, (0, 1), (7, 25), (0.5, 1.5)),
    Placement(parked_car, (0, 3), (9, 60), (-1.1, -0.95)),
    Placement(rear_car, (0, 2), (11, 60), (-4.4, -3.4), (-1,)),
    Placement(front_car, (0, 2), (10, 60), (-3.5, -2.9), (1,)),
    Placement(pedestrian, (1, 5), (6, 32), (0.5, 2.5)),
    Placement(cyclist, (1, 1), (9, 30), (-2.3, -1.8)),
)


def placed(rng: np.random.Generator, kerb: dict[int, float]) -> list[tuple[float, float, Draw]]:
    """Place all objects, the farthest first: depth, x and kind. Objects of one kind keep their distance."""
    objects = []
    for placement in PLACEMENTS:
        for side in placement.sides:
            count = int(rng.integers(placement.count[0], placement.count[1] + 1))
            near, far = placement.depth
            for index in range(count):
                share = (index + rng.uniform(0.1, 0.7)) / count
                z = near + (far - near) * share * share  # denser near the camera, where details are visible
                x = kerb[side] + side * rng.uniform(*placement.offset)
                objects.append((z, x, placement.draw))
    return sorted(objects, key=lambda item: -item[0])
