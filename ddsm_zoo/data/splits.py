"""Training and validation sets of a run: the splits train and val or, without a val, a held-out part of train."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from ddsm_zoo.data.datasets import SegmentationDataset, Transform, open_dataset
from ddsm_zoo.data.kinds import open_source
from ddsm_zoo.data.layouts import LABELED_SPLITS, split_hint
from ddsm_zoo.data.masks import DatasetError

logger = logging.getLogger(__name__)


def training_splits(spec: str) -> tuple[str, ...]:
    """Return the splits of a data set that training reads: train and val, or train alone without a val."""
    return LABELED_SPLITS if "val" in open_source(spec).splits() else LABELED_SPLITS[:1]


def held_out(names: Sequence[str], share: float) -> list[int]:
    """Choose the indices of held-out names: ``share`` of them, at least one, and at least one stays.

    A name's hash decides, in the same way on every machine. If names are added, few others change sides.
    """
    count = min(max(1, round(share * len(names))), len(names) - 1)
    hashes = [hashlib.sha256(name.encode("utf-8", "replace")).digest() for name in names]
    ranked = sorted(range(len(names)), key=lambda index: hashes[index])
    return sorted(ranked[:count])


def open_training_sets(
    spec: str, share: float, train_transform: Transform, val_transform: Transform, seed: int
) -> tuple[SegmentationDataset, SegmentationDataset, list[int]]:
    """Open the training and validation sets. Also return the indices of the images of the split train to train on.

    Raises DatasetError as `open_dataset` does, and if there is no split val and train has only one image.
    """
    train_set = open_dataset(spec, "train", train_transform, seed)
    count = len(train_set)
    if len(training_splits(spec)) == len(LABELED_SPLITS):
        return train_set, open_dataset(spec, "val", val_transform), list(range(count))
    if count < 2:
        raise DatasetError(
            f"{spec} has no split val and 1 image in train, expected at least 2 to hold one out",
            kind="missing-split",
            name=spec,
        )
    names = [pair.name for pair in train_set.pairs]
    out = held_out(names, share)
    rest = sorted(set(range(count)) - set(out))
    logger.warning(
        "%s has no split val: %d of the %d images in train are held out to validate (%s%s); for a choice of your own, "
        "with all frames of a video on one side, move images and masks to val%s",
        spec,
        len(out),
        count,
        ", ".join(names[index] for index in out[:3]),
        ", ..." if len(out) > 3 else "",
        split_hint("val", open_source(spec).splits()),
    )
    return train_set.subset(rest, train_transform, seed), train_set.subset(out, val_transform), rest
