"""Rendered street scenes as a data set: ``scenes:N``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddsm_zoo.data.masks import CAMVID_IDS, DatasetError
from ddsm_zoo.data.pairs import Pair, SegmentationDataset, Transform
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.labels import CAMVID, LabelSpace

MOST = 1_000_000_000


class SceneDataset(SegmentationDataset):
    """Rendered street scenes with CamVid's classes. ``load`` renders. The paths of ``pairs`` only name the scenes."""

    # seeds count up from here, so that splits of any size share no scene
    SPLITS: Mapping[str, int] = {"train": 0, "val": MOST}

    def __init__(self, count: int, split: str, transform: Transform | None = None, seed: int = 0) -> None:
        if split not in self.SPLITS:
            expected = ", ".join(self.SPLITS)
            raise DatasetError(
                f"rendered scenes have no split {split!r}, expected one of {expected}",
                kind="missing-split",
                name=split,
                expected=expected,
            )
        names = [f"scene_{self.SPLITS[split] + index:010d}" for index in range(count)]
        pairs = [Pair(Path(f"{name}.png"), Path(f"{name}_mask.png"), name) for name in names]
        super().__init__(pairs, CAMVID, CAMVID_IDS, transform, seed)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = render_scene(int(self.pairs[index].name.removeprefix("scene_")))
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask).long()


class Scenes:
    """Data set of ``count`` rendered scenes in each split."""

    labels: LabelSpace = CAMVID

    def __init__(self, count: str) -> None:
        """Raise DatasetError unless ``count`` is a whole number from 1 to `MOST`."""
        if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MOST):
            expected = f"scenes:N with N from 1 to {MOST}"
            raise DatasetError.of(
                "data set", f"scenes:{count}", expected, kind="unknown-data", shown=f"'scenes:{count}'"
            )
        self.count = int(count)

    def splits(self) -> list[str]:
        return list(SceneDataset.SPLITS)

    def open(self, split: str, transform: Transform | None = None, seed: int = 0) -> SceneDataset:
        """Open the scenes of a split. Raises DatasetError for a split that is neither train nor val."""
        return SceneDataset(self.count, split, transform, seed)
