"""Cityscapes evaluation beyond the classes: categories, objects, and files for its server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddsm_zoo.data.mask_files import read_stored
from ddsm_zoo.data.masks import CITYSCAPES_TRAINED, DatasetError
from ddsm_zoo.data.pairs import Pair, SegmentationDataset
from ddsm_zoo.labels import CITYSCAPES
from ddsm_zoo.metrics.instances import InstanceIoU, category_iou
from ddsm_zoo.utils.distributed import all_reduce_sum
from ddsm_zoo.utils.files import atomic_path

# Classes of each category, by class (train) id
CATEGORIES = {
    "flat": (0, 1),
    "construction": (2, 3, 4),
    "object": (5, 6, 7),
    "nature": (8, 9),
    "sky": (10,),
    "human": (11, 12),
    "vehicle": (13, 14, 15, 16, 17, 18),
}

# Mean size in pixels of an object, for each class with labeled objects, as the benchmark fixed it
MEAN_OBJECT_SIZES = {
    11: 3462.4756337644,
    12: 3930.4788056518,
    13: 12794.0202738185,
    14: 27855.1264367816,
    15: 35732.1511111111,
    16: 67583.7075812274,
    17: 6298.7200839748,
    18: 4672.3249222261,
}

_SMALLEST_OBJECT_ID = 1001  # up to 1000, pixels of a class that are no single object; the benchmark skips 1000 as well
_SUFFIX = "_gtFine_labelIds"


def object_files(pairs: Sequence[Pair]) -> list[Path] | None:
    """Find the file of object ids next to each mask of label ids, None unless every mask has one."""
    files = [pair.mask.with_name(pair.mask.name.replace(_SUFFIX, "_gtFine_instanceIds")) for pair in pairs]
    complete = all(pair.mask.stem.endswith(_SUFFIX) and file.is_file() for pair, file in zip(pairs, files, strict=True))
    return files if complete else None


def read_objects(path: Path, target: Tensor) -> Tensor:
    """Read the object ids (h, w) for the label ``target`` (h, w), 0 for no object. Raises DatasetError."""
    ids = torch.from_numpy(read_stored(path).values.astype(np.int64))
    if ids.shape != target.shape:
        raise DatasetError(
            f"{path} is {ids.shape[-1]} x {ids.shape[0]} pixels, expected {target.shape[1]} x {target.shape[0]} "
            "and one value a pixel, as its label",
            kind="size-mismatch",
            path=path,
        )
    return ids.where(ids >= _SMALLEST_OBJECT_ID, 0)


def write_label_ids(folder: Path, name: str, ids: Tensor) -> None:
    """Write class ids (h, w) as the benchmark's label ids to ``NAME_labelIds.png``, the format of its server."""
    table = np.zeros(len(CITYSCAPES_TRAINED), np.uint8)
    table[list(CITYSCAPES_TRAINED.values())] = list(CITYSCAPES_TRAINED)
    with atomic_path(folder / f"{name}_labelIds.png") as temporary:
        Image.fromarray(table[ids.cpu().numpy()]).save(temporary)


class CityscapesScores:
    """Category IoU and, if every mask has its file of objects, instance-level IoU of classes and categories."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.files = object_files(dataset.pairs)
        groups = {str(label): (label,) for label in MEAN_OBJECT_SIZES}
        whole_categories = {
            name: members
            for name, members in CATEGORIES.items()
            if all(label in MEAN_OBJECT_SIZES for label in members)
        }
        self.classes = InstanceIoU(groups, MEAN_OBJECT_SIZES)
        self.categories = InstanceIoU(whole_categories, MEAN_OBJECT_SIZES)
        # kept for each image, and summed in one order at the end: sums of floats depend on it
        self.counts = {
            metric: metric.counts.new_zeros(len(dataset), *metric.counts.shape)
            for metric in (self.classes, self.categories)
        }

    def add(self, index: int, ids: Tensor, target: Tensor) -> None:
        if self.files is not None:
            objects = read_objects(self.files[index], target)
            for metric, counts in self.counts.items():
                metric.reset()
                metric.update(ids, target, objects)
                counts[index] = metric.counts

    def compute(self, confusion: Tensor) -> dict[str, Any]:
        """Compute each table by name, and its mean over the classes or categories that occur."""
        tables = {"category_iou": category_iou(confusion, CATEGORIES)}
        if self.files is not None:
            for metric, counts in self.counts.items():
                metric.counts = all_reduce_sum(counts).sum(0)
            iiou = self.classes.compute(confusion)
            tables["iiou"] = {CITYSCAPES.names[int(label)]: value for label, value in iiou.items()}
            tables["category_iiou"] = self.categories.compute(confusion)
        means = {
            f"mean_{name}": torch.tensor(list(table.values()), dtype=torch.float64).nanmean().item()
            for name, table in tables.items()
        }
        return {**means, **tables}
