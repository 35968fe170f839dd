"""Decoding of masks to class ids by tables: CamVid's colours, Cityscapes' label ids, plain ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddsm_zoo.errors import UserError
from ddsm_zoo.labels import CAMVID, CITYSCAPES, Color, LabelSpace

_NO_CLASS = np.iinfo(np.int64).min


class DatasetError(UserError, ValueError):
    """Unusable data. The message names the file or folder, its content and the expected content."""

    kind = "data"


@dataclass(frozen=True, kw_only=True)
class MaskDecoder:
    """Decoder from stored mask values to class ids.

    Attributes:
        ids: Class id of each stored id, for single-channel masks.
        colors: Class id of each RGB colour, for RGB masks.
    """

    ids: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[Color, int] = field(default_factory=dict)

    def __call__(self, stored: npt.NDArray[np.integer[Any]], path: Path) -> npt.NDArray[np.int64]:
        """Decode a mask.

        Args:
            stored: Stored values, unsigned (H, W) or (H, W, 3).
            path: File they were read from, for errors.

        Returns:
            Class ids (H, W).

        Raises:
            DatasetError: An id or colour has no class. The message has the first one.
        """
        if stored.ndim == 2:
            if not self.ids:
                raise DatasetError(f"mask {path} holds single-channel ids, expected RGB colours")
            classes: npt.NDArray[np.int64] = self._class_of_id[stored]
        else:
            if not self.colors:
                raise DatasetError(f"mask {path} is an RGB image, expected single-channel ids {ranges(self.ids)}")
            codes = _pack(stored)
            position = np.searchsorted(self._codes[:-1], codes)
            classes = np.where(self._codes[position] == codes, self._class_of_code[position], _NO_CLASS)
        if (classes == _NO_CLASS).any():
            row, column = np.argwhere(classes == _NO_CLASS)[0]
            raise DatasetError(f"mask {path} holds {self._describe(stored[row, column])} at row {row}, column {column}")
        return classes

    def require_classes(self, labels: LabelSpace) -> None:
        """Raise DatasetError unless all decoded ids are class ids of ``labels`` or their ``ignore_index``."""
        given = {*self.ids.values(), *self.colors.values()} - {labels.ignore_index}
        strange = sorted(given - set(range(len(labels.in_masks))))
        if strange:
            raise DatasetError(
                f"masks are decoded to class id {strange[0]}, expected 0 to {len(labels.in_masks) - 1} for the "
                f"{len(labels)} classes or the ignored {labels.ignore_index}"
            )

    @cached_property
    def _class_of_id(self) -> npt.NDArray[np.int64]:
        table = np.full(65536, _NO_CLASS)
        table[list(self.ids)] = list(self.ids.values())
        return table

    @cached_property
    def _codes(self) -> npt.NDArray[np.int64]:
        """Packed colours in order, and one more than any colour so that a search always ends on an entry."""
        return np.append(np.sort(_pack(np.array(list(self.colors)))), 1 << 24)

    @cached_property
    def _class_of_code(self) -> npt.NDArray[np.int64]:
        order = np.argsort(_pack(np.array(list(self.colors))))
        return np.append(np.array(list(self.colors.values()))[order], _NO_CLASS)

    def _describe(self, stored: npt.NDArray[np.integer[Any]]) -> str:
        if stored.ndim == 0:
            return f"id {stored}, expected {ranges(self.ids)}"
        return f"colour {tuple(stored.tolist())}, expected one of the {len(self.colors)} colours of the classes"


def _pack(colors: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Pack RGB triples (..., 3) into one number each (...)."""
    wide = colors.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def ranges(ids: Iterable[int]) -> str:
    """Format ids in short: ``0 to 10, 255``."""
    runs: list[list[int]] = []
    for value in sorted(ids):
        if runs and value == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], value]
        else:
            runs.append([value])
    return ", ".join(" to ".join(map(str, run)) for run in runs)


def identity(labels: LabelSpace) -> dict[int, int]:
    """Build the table of masks that hold the class ids themselves. An ignored id that no file can hold is left out."""
    ids = [*range(len(labels.in_masks)), labels.ignore_index]
    return {value: value for value in ids if 0 <= value < 65536}


# name, colour and class of CamVid's 32 annotated objects; the grouping into 11 classes is SegNet's
CAMVID_OBJECTS: tuple[tuple[str, Color, str | None], ...] = (
    ("Animal", (64, 128, 64), "Pedestrian"),
    ("Archway", (192, 0, 128), "Building"),
    ("Bicyclist", (0, 128, 192), "Bicyclist"),
    ("Bridge", (0, 128, 64), "Building"),
    ("Building", (128, 0, 0), "Building"),
    ("Car", (64, 0, 128), "Car"),
    ("CartLuggagePram", (64, 0, 192), "Pedestrian"),
    ("Child", (192, 128, 64), "Pedestrian"),
    ("Column_Pole", (192, 192, 128), "Pole"),
    ("Fence", (64, 64, 128), "Fence"),
    ("LaneMkgsDriv", (128, 0, 192), "Road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "Road"),
    ("Misc_Text", (128, 128, 64), "SignSymbol"),
    ("MotorcycleScooter", (192, 0, 192), "Bicyclist"),
    ("OtherMoving", (128, 64, 64), "Car"),
    ("ParkingBlock", (64, 192, 128), "Pavement"),
    ("Pedestrian", (64, 64, 0), "Pedestrian"),
    ("Road", (128, 64, 128), "Road"),
    ("RoadShoulder", (128, 128, 192), "Pavement"),
    ("SUVPickupTruck", (64, 128, 192), "Car"),
    ("Sidewalk", (0, 0, 192), "Pavement"),
    ("SignSymbol", (192, 128, 128), "SignSymbol"),
    ("Sky", (128, 128, 128), "Sky"),
    ("TrafficCone", (0, 0, 64), "Pole"),
    ("TrafficLight", (0, 64, 64), "SignSymbol"),
    ("Train", (192, 64, 128), "Car"),
    ("Tree", (128, 128, 0), "Tree"),
    ("Truck_Bus", (192, 128, 192), "Car"),
    ("Tunnel", (64, 0, 64), "Building"),
    ("VegetationMisc", (192, 192, 0), "Tree"),
    ("Void", (0, 0, 0), None),
    ("Wall", (64, 192, 0), "Building"),
)

# label id -> train id of Cityscapes; the other label ids, 0 to 33, are not trained on
CITYSCAPES_TRAINED = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9,
    23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip

CAMVID_COLORS = MaskDecoder(
    colors={
        color: CAMVID.ignore_index if name is None else CAMVID.names.index(name) for _, color, name in CAMVID_OBJECTS
    }
)
CAMVID_IDS = MaskDecoder(ids=identity(CAMVID) | {len(CAMVID): CAMVID.ignore_index})
CITYSCAPES_LABEL_IDS = MaskDecoder(
    ids={label: CITYSCAPES_TRAINED.get(label, CITYSCAPES.ignore_index) for label in range(34)}
)
CITYSCAPES_TRAIN_IDS = MaskDecoder(ids=identity(CITYSCAPES))
