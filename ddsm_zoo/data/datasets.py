"""Segmentation data sets by name, and known layouts by their folder."""

from __future__ import annotations

from pathlib import Path

from ddsm_zoo.data.kinds import open_layout, open_source
from ddsm_zoo.data.layouts import camvid_layout, cityscapes_layout, folder_layout
from ddsm_zoo.data.masks import DatasetError, MaskDecoder
from ddsm_zoo.data.pairs import Pair, SegmentationDataset, Transform

__all__ = [
    "DatasetError",
    "MaskDecoder",
    "Pair",
    "SegmentationDataset",
    "Transform",
    "camvid",
    "cityscapes",
    "folder",
    "open_dataset",
    "open_layout",
]


def open_dataset(spec: str, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """Open one split of the data set ``NAME:REST``.

    Args:
        spec: ``NAME:REST`` with a registered NAME. The package has ``camvid:ROOT``, ``cityscapes:ROOT``,
            ``folder:ROOT`` and ``scenes:N`` (N rendered scenes).
        split: Name of the split, such as ``train`` or ``val``.
        transform: Transform of each image and mask, None for none.
        seed: Seed of the transform's randomness.

    Returns:
        Data set of images and masks.

    Raises:
        DatasetError: The spec, its root or the split is unusable.
    """
    return open_source(spec).open(split, transform, seed)


def cityscapes(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """Open Cityscapes: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` with ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``.

    Label ids become the 19 train ids. A split without ``labelIds`` uses its ``labelTrainIds``, which are train ids.
    """
    return cityscapes_layout(root).open(split, transform, seed)


def camvid(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """Open CamVid with 11 classes, in any of its three common layouts.

    1. ``SPLIT`` with ``SPLITannot``: class ids, 11 is ignored.

    2. ``SPLIT`` with ``SPLIT_labels``: the original's 32 colors, files ``NAME_L.png``.

    3. ``701_StillsRaw_full`` or ``images`` with ``LabeledApproved_full`` or ``labels``: the same colors. ``SPLIT.txt``
    has the names of a split.
    """
    return camvid_layout(root).open(split, transform, seed)


def folder(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """Open any task: ``images/SPLIT``, ``masks/SPLIT`` with the same file names, and ``labels.json``.

    ``labels.json`` holds ``names`` and, optionally, what stored values and colors stand for (docs/data.md). Masks may
    also be called ``NAME_mask.png`` and the like.
    """
    return folder_layout(root).open(split, transform, seed)
