"""Data sets of the comparison, and the score of a method on them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.finetune.fields import write_fields
from benchmarks.finetune.plan import Plan
from ddsm_zoo.utils.files import write_text

Array = npt.NDArray[np.uint8]


def prepare(name: str, out: Path, plan: Plan) -> Path:
    """Write the data set ``fields`` or NAME=ROOT to a folder of its own, smaller by ``shrink``. Returns the folder.

    Masks stored as 0 and 255 get the ids 0 and 1.
    """
    name, _, source = name.partition("=")
    root = out / "data" / f"{name}-{plan.shrink}-{plan.train if not source else 'all'}"
    if (root / "labels.json").is_file():  # written last
        return root
    shutil.rmtree(root, ignore_errors=True)
    if not source:
        if name != "fields":
            raise ValueError(f"got the data set {name!r}, expected fields or NAME=ROOT")
        write_fields(root, plan.train, max(1, plan.train // 2), (480 // plan.shrink, 640 // plan.shrink))
        return root
    labels = (Path(source) / "labels.json").read_text(encoding="utf-8")
    for split in ("train", "val"):
        for image, mask in zip(*(files(Path(source), kind, split) for kind in ("images", "masks")), strict=True):
            with Image.open(image) as picture:
                small = picture.convert("RGB").reduce(plan.shrink)
            with Image.open(mask) as picture:
                ids = np.asarray(picture.resize(small.size, Image.Resampling.NEAREST))
            ids = np.where(ids == 255, 1, ids).astype(np.uint8) if set(np.unique(ids)) <= {0, 255} else ids
            for kind, content in (("images", small), ("masks", Image.fromarray(ids))):
                path = root / kind / split / f"{image.stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                content.save(path)
    write_text(root / "labels.json", labels)
    return root


def files(root: Path, kind: str, split: str) -> list[Path]:
    found = sorted((root / kind / split).glob("*.*"))
    if not found:
        raise FileNotFoundError(f"no files in {root / kind / split}, expected images and masks of equal names")
    return found


def read(root: Path, split: str) -> list[tuple[Array, Array]]:
    """Read images (H, W, 3) and class ids (H, W)."""
    pairs = zip(files(root, "images", split), files(root, "masks", split), strict=True)
    return [(np.array(Image.open(image).convert("RGB")), np.array(Image.open(mask))) for image, mask in pairs]


def classes_of(root: Path) -> list[str]:
    names: list[str] = json.loads((root / "labels.json").read_text(encoding="utf-8"))["names"]
    return names


def iou_of(pairs: Sequence[tuple[Array, Array]], classes: int) -> list[float]:
    """IoU of each class in percent, over all pixels of (target, prediction); ids beyond the classes are ignored."""
    confusion = np.zeros((classes, classes), np.int64)
    for target, prediction in pairs:
        known = target < classes
        flat = target[known].astype(np.int64) * classes + prediction[known]
        confusion += np.bincount(flat, minlength=classes**2).reshape(classes, classes)
    right = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - right
    return [100 * float(hit) / float(total) if total else math.nan for hit, total in zip(right, union, strict=True)]
