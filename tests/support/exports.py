"""Exports of annotation tools: those that their own libraries wrote, and those that are written here as documented."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddsm_zoo.data.importing.run import ImportReport
from tests.support.data_sets import write
from tests.support.pages import ROOT

GOLDEN = ROOT / "tests" / "golden" / "formats"  # make.py there says what the files hold
SIZE = (20, 30)
NAMES = ("field", "weed", "ring")

# Two rectangles of which the second lies over the first, and a ring
EXPECTED = np.zeros(SIZE, int)
EXPECTED[3:10, 2:12] = 1
EXPECTED[6:14, 8:20] = 2
EXPECTED[12:19, 22:29] = 3
EXPECTED[14:17, 24:27] = 0

FIELD = [2, 3, 12, 3, 12, 10, 2, 10]
WEED = [8, 6, 20, 6, 20, 14, 8, 14]


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def mask(root: Path, name: str, split: str = "train") -> np.ndarray:
    return np.asarray(Image.open(root / "masks" / split / f"{name}.png"))


def names(root: Path) -> list[str]:
    return list(json.loads((root / "labels.json").read_text())["names"])


def write_coco(
    root: Path,
    annotations: Sequence[Mapping[str, Any]],
    *,
    images: Sequence[str] = ("a.png",),
    categories: Sequence[Mapping[str, Any]] | None = None,
    file: str = "annotations.json",
    size: tuple[int, int] = SIZE,
) -> Path:
    """COCO with images of ``size``, whose ids count from 1; annotations are of the first image unless they say."""
    for number, name in enumerate(images, 1):
        write(root / name, picture(number, size))
    content = {
        "images": [
            {"id": number, "file_name": name, "height": size[0], "width": size[1]}
            for number, name in enumerate(images, 1)
        ],
        "categories": categories or [{"id": id, "name": name} for id, name in enumerate(NAMES, 1)],
        "annotations": [{"id": id, "image_id": 1, "iscrowd": 0, **entry} for id, entry in enumerate(annotations, 1)],
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content), encoding="utf-8")
    return root


def polygon(points: Sequence[float], category: int = 1, **more: Any) -> dict[str, Any]:
    return {"category_id": category, "segmentation": [list(points)], **more}


def write_yolo(root: Path) -> Path:
    """Ultralytics' layout: data.yaml, and labels/ beside images/, in fractions of the image."""
    lines = []
    for index, points in enumerate((FIELD, WEED)):
        fractions = (np.reshape(points, (-1, 2)) / SIZE[::-1]).ravel()
        lines.append(" ".join([str(index), *map(str, fractions)]))
    write(root / "images/train/a.png", picture(0))
    write(root / "images/val/b.png", picture(1))
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: field\n  1: weed\n  2: ring\n"
    )
    return root


def write_roboflow(root: Path) -> Path:
    """Roboflow's "Semantic Segmentation Masks": _classes.csv, and NAME_mask.png beside NAME.jpg."""
    for split, name, ids in (("train", "a", EXPECTED), ("valid", "b", EXPECTED * 0)):
        Image.fromarray(picture(name == "b")).save(make(root / split) / f"{name}.jpg")
        write(root / split / f"{name}_mask.png", ids.astype(np.uint8))
        rows = ["Pixel Value, Class", "0, background", *(f"{id}, {label}" for id, label in enumerate(NAMES, 1))]
        (root / split / "_classes.csv").write_text("\n".join(rows))
    return root


def write_class_masks(root: Path) -> Path:
    """A black and white file for each class and image."""
    for split, name, ids in (("train", "a", EXPECTED), ("val", "b", EXPECTED * 0)):
        write(root / "images" / split / f"{name}.png", picture(ord(name)))
        for index, label in enumerate(NAMES, 1):
            write(root / "masks" / split / f"{name}_{label}.png", ((ids == index) * 255).astype(np.uint8))
    return root


def write_ade20k(root: Path) -> Path:
    """The folders of ADEChallengeData2016, with three classes."""
    for split, name, ids in (("training", "a", EXPECTED), ("validation", "b", EXPECTED * 0 + 1)):
        Image.fromarray(picture(name == "b")).save(make(root / "images" / split) / f"{name}.jpg")
        write(root / "annotations" / split / f"{name}.png", ids.astype(np.uint8))
    rows = ["Idx\tRatio\tTrain\tVal\tName"]
    rows += [f"{id}\t0.1\t10\t1\t{label}, {label} of land" for id, label in enumerate(NAMES, 1)]
    (root / "objectInfo150.txt").write_text("\n".join(rows))
    return root


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def golden(format: str) -> Callable[[Path], Path]:
    """A function that puts a copy of what the format's library wrote where it is told."""
    return lambda root: shutil.copytree(GOLDEN / format, root)


SOURCES = {
    "coco": golden("coco"),
    "cvat": golden("cvat"),
    "labelme": golden("labelme"),
    "voc": golden("voc"),
    "yolo": write_yolo,
    "roboflow": write_roboflow,
    "ade20k": write_ade20k,
    "class-masks": write_class_masks,
}


def left_out(report: ImportReport) -> dict[str, int]:
    return {row["what"].partition(" (")[0]: row["count"] for row in report.to_plain()["left_out"]}


def notes(report: ImportReport) -> str:
    return "\n".join(report.findings.notes.lines())
