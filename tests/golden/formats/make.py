"""Write the files in this folder with datumaro and labelme, which the tests do not need.

    pip install datumaro labelme
    python tests/golden/formats/make.py tests/golden/formats

Datumaro is the library behind CVAT's exports. Two images of 30 x 20 pixels: ``a`` in train with two polygons of which
the second lies over the first, a mask with a hole, a box and a point, and ``b`` in val with nothing.
`tests.support.exports.EXPECTED` has the classes of the pixels of ``a``, drawn by slices.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from datumaro import Bbox, Dataset, DatasetItem, Image, Mask, Points, Polygon
from labelme._label_file import write_label_file
from PIL import Image as Pillow

SIZE = (20, 30)
NAMES = ("field", "weed", "ring")
FIELD = [2, 3, 12, 3, 12, 10, 2, 10]
WEED = [8, 6, 20, 6, 20, 14, 8, 14]
FORMATS = {"coco": "coco_instances", "cvat": "cvat", "voc": "voc_segmentation"}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def ring() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[12:19, 22:29] = True
    mask[14:17, 24:27] = False
    return mask


def dataset(kind: str) -> Dataset:
    shapes = [Polygon(FIELD, label=0, id=1, group=1, z_order=0), Polygon(WEED, label=1, id=2, group=2, z_order=1)]
    extra = [Mask(ring(), label=NAMES.index("ring") + (kind == "voc"), id=3, group=3, z_order=2)]
    if kind in ("coco", "cvat"):
        extra += [Bbox(0, 0, 3, 2, label=1, id=4, group=4, z_order=3)]
    if kind == "cvat":
        extra += [Points([25, 3], label=0, id=5, group=5, z_order=4)]
    if kind == "voc":
        shapes = [
            Mask(as_mask(points), label=label + 1, id=label, group=label + 1, z_order=label)
            for label, points in enumerate((FIELD, WEED))
        ]
    items = [
        DatasetItem("a", subset="train", media=Image.from_numpy(picture(0)[..., ::-1]), annotations=shapes + extra),
        DatasetItem("b", subset="val", media=Image.from_numpy(picture(1)[..., ::-1]), annotations=[]),
    ]
    names = ("background", *NAMES) if kind == "voc" else NAMES
    return Dataset.from_iterable(items, categories=list(names))


def as_mask(points: list[int]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[points[1] : points[5], points[0] : points[2]] = True
    return mask


def write_labelme(folder: Path) -> None:
    """``b`` has its image inside the JSON file alone."""
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    Pillow.fromarray(picture(0)).save(folder / "train" / "a.png")
    shapes = [
        shape("field", "polygon", np.reshape(FIELD, (-1, 2)).tolist()),
        shape("weed", "polygon", np.reshape(WEED, (-1, 2)).tolist()),
        shape("ring", "mask", [[22, 12], [28, 18]], mask=base64.b64encode(png(ring()[12:19, 22:29])).decode()),
        shape("weed", "rectangle", [[0, 0], [3, 2]]),
        shape("field", "point", [[25, 3]]),
    ]
    size = {"image_height": SIZE[0], "image_width": SIZE[1]}
    write_label_file(str(folder / "train" / "a.json"), shapes=shapes, image_path="a.png", **size)
    write_label_file(
        str(folder / "val" / "b.json"), shapes=[], image_path="..\\b.png", image_data=png(picture(1)), **size
    )


def shape(label: str, kind: str, points: list[list[float]], **more: str) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        **more,
    }


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def main(folder: Path) -> None:
    write_labelme(folder / "labelme")
    for kind, format in FORMATS.items():
        dataset(kind).export(str(folder / kind), format, save_media=True, image_ext=".png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
