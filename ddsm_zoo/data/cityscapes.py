"""What Cityscapes' own evaluation knows beyond the classes: categories, objects, and files for its server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from ddsm_zoo.data.datasets import Pair, SegmentationDataset, Transform
from ddsm_zoo.data.images import read_image, read_mask
from ddsm_zoo.data.layouts import Layout
from ddsm_zoo.data.masks import CITYSCAPES_TRAINED, DatasetError
from ddsm_zoo.utils.files import atomic_path

# The classes of each category by class (train) id
CATEGORIES = {
    "flat": (0, 1),
    "construction": (2, 3, 4),
    "object": (5, 6, 7),
    "nature": (8, 9),
    "sky": (10,),
    "human": (11, 12),
    "vehicle": (13, 14, 15, 16, 17, 18),
}

# Mean pixels of an object of each class that is labelled object by object, as the benchmark fixed them
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
    """The file of object ids beside each mask of label ids, None unless every mask has one."""
    files = [pair.mask.with_name(pair.mask.name.replace(_SUFFIX, "_gtFine_instanceIds")) for pair in pairs]
    complete = all(pair.mask.stem.endswith(_SUFFIX) and file.is_file() for pair, file in zip(pairs, files, strict=True))
    return files if complete else None


def read_objects(path: Path, target: Tensor) -> Tensor:
    """The ids of the objects (h, w) on the label ``target`` (h, w), 0 where there is none. Raises DatasetError."""
    ids = torch.from_numpy(read_mask(path).astype(np.int64))
    if ids.shape != target.shape:
        raise DatasetError(
            f"{path} is {ids.shape[-1]} x {ids.shape[0]} pixels, expected {target.shape[1]} x {target.shape[0]} "
            "and one value a pixel, as its label"
        )
    return ids.where(ids >= _SMALLEST_OBJECT_ID, 0)


def write_label_ids(folder: Path, name: str, ids: Tensor) -> None:
    """Write class ids (h, w) as the benchmark's label ids to ``NAME_labelIds.png``, the way its server wants them."""
    table = np.zeros(len(CITYSCAPES_TRAINED), np.uint8)
    table[list(CITYSCAPES_TRAINED.values())] = list(CITYSCAPES_TRAINED)
    with atomic_path(folder / f"{name}_labelIds.png") as temporary:
        Image.fromarray(table[ids.cpu().numpy()]).save(temporary)


class UnlabeledImages(SegmentationDataset):
    """The images of a split that has no masks, as those of the test split: every mask is void."""

    def __init__(self, layout: Layout, split: str, transform: Transform | None = None) -> None:
        source = layout.source(split)
        pairs = [Pair(path, path, name) for name, path in sorted(source.images.items())]
        super().__init__(pairs, layout.labels, source.decode, transform)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        image = pil_to_tensor(read_image(self.pairs[index].image))
        return image, torch.full(image.shape[1:], self.labels.ignore_index)
