"""Reading of masks as class ids: one set of rules for training, scoring, predictions and the check."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.mask_files import MaskFile, Stored, count_ids, read_stored
from ddsm_zoo.errors import UserError
from ddsm_zoo.labels import CAMVID, CITYSCAPES, Color, LabelSpace

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_NO_CLASS = np.iinfo(np.int64).min
LARGEST_ID = 65535  # of a mask with 16 bits
_LISTED = 12  # classes whose stored values are listed one by one


class DatasetError(UserError, ValueError):
    """Unusable data. The message names the file or folder, its content and the expected content."""

    kind = "data"


class Interpretation(NamedTuple):
    """Values of a mask that stand for classes: ids (H, W) or colors (H, W, 3), and the class id of each."""

    values: Stored
    classes: Mapping[Any, int]


@dataclass(frozen=True, kw_only=True)
class MaskDecoder:
    """Decoder from stored mask values to class ids.

    Attributes:
        ids: Class id of each stored id, for single-channel masks.
        colors: Class id of each RGB color, for RGB masks and palette images.
        open_255: True if nobody said what 255 stands for in masks of two classes. `settle` decides it from the files.
        by_number: True if somebody said what the stored ids stand for, whatever palettes show.
        plain: For a decoder that `settle` made, the one it was made from.
    """

    ids: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[Color, int] = field(default_factory=dict)
    open_255: bool = False
    by_number: bool = False
    plain: MaskDecoder | None = None

    def read(self, path: str | Path) -> npt.NDArray[np.int64]:
        """Read a mask file as class ids (H, W).

        Raises:
            FileNotFoundError: There is no file.
            ImageError: The file is damaged or no image.
            DatasetError: A value has no class, or the file is compressed with loss.
        """
        return self.decode(read_stored(path))

    def decode(self, stored: MaskFile) -> npt.NDArray[np.int64]:
        """Decode a mask file as `read` does. Raises DatasetError for the same reasons."""
        if stored.lossy:
            raise DatasetError(
                f"mask {stored.path} is compressed with loss, which changes classes; expected a PNG",
                kind="smeared-mask",
                path=stored.path,
            )
        return self._decode(*self.interpret(stored), stored.path)

    def __call__(self, stored: Stored, path: Path) -> npt.NDArray[np.int64]:
        """Decode values in memory.

        Args:
            stored: Stored values, unsigned (H, W) or (H, W, 3).
            path: File they were read from, for errors.

        Returns:
            Class ids (H, W).

        Raises:
            DatasetError: An id or color has no class. The message has the first one.
        """
        return self._decode(*self.interpret(MaskFile(path=path, values=stored)), path)

    def interpret(self, stored: MaskFile) -> Interpretation:
        """Choose how to read a mask: by its colors where they are known, else by its ids.

        Three equal channels are ids where their grays are not among the known colors. A palette image is read by
        colors if those of all its indices stand for classes. In a palette of grays, the levels are the ids if all of
        them are known, and black and white are the two classes where there are two. Otherwise the indices are ids.
        """
        values = stored.values
        if values.ndim == 3:
            by_id = stored.equal_channels and (not self.colors or self._are_ids(values[..., 0]))
            return Interpretation(values[..., 0], self.ids) if by_id else Interpretation(values, self.colors)
        shown = {} if stored.numbered or not self.colors else stored.shown
        if shown and all(color in self.colors for color in shown.values()):
            return Interpretation(values, {index: self.colors[color] for index, color in shown.items()})
        if self.by_number or stored.numbered:
            return Interpretation(stored.numbers(self.ids), self.ids)
        if self.two_classes and stored.shown and set(stored.shown.values()) <= {BLACK, WHITE}:
            return Interpretation(values, {index: int(color == WHITE) for index, color in stored.shown.items()})
        if stored.levels and set(stored.levels) != {0, 255} and self.ids.keys() >= set(stored.levels):
            return Interpretation(values, {index: self.ids[level] for index, level in enumerate(stored.levels)})
        return Interpretation(values, self.ids)

    @cached_property
    def two_classes(self) -> bool:
        """True if ids stand for the classes 0 and 1, and for no other."""
        classes = set(self.ids.values())
        return {0, 1} <= classes and 2 not in classes

    def _are_ids(self, grays: Stored) -> bool:
        """Return True for grays that are ids and no colors of classes. Black and white alone can be either."""
        used = count_ids(grays).keys()
        return used <= self.ids.keys() and any((gray,) * 3 not in self.colors for gray in used - {0, 255})

    def require_classes(self, labels: LabelSpace) -> None:
        """Raise DatasetError unless all decoded ids are class ids of ``labels`` or their ``ignore_index``."""
        given = {*self.ids.values(), *self.colors.values()} - {labels.ignore_index}
        count = len(labels.in_masks)
        strange = sorted(given - set(range(count)))
        if strange:
            raise DatasetError(
                f"masks are decoded to class id {strange[0]}, expected 0 to {count - 1} for the {len(labels)} "
                f"classes or the ignored {labels.ignore_index}",
                kind="unknown-id",
                got=strange[0],
            )

    def describe(self, labels: LabelSpace) -> str:
        """Describe the stored values of each class and the ignored ones in one line."""
        names = labels.in_masks.names
        parts = []
        if self.ids and len(names) > _LISTED and all(self.ids.get(index) == index for index in range(len(names))):
            parts.append(f"ids 0 to {len(names) - 1} in the order of the names")
        elif self.ids:
            stored = [ranges(value for value, index in self.ids.items() if index == each) for each in range(len(names))]
            parts.append(", ".join(f"{values} = {name}" for values, name in zip(stored, names, strict=True) if values))
        ignored = [value for value, index in self.ids.items() if index == labels.ignore_index]
        if ignored:
            parts.append(f"{ranges(ignored)} = ignored")
        if self.colors:
            hidden = [str(color) for color, index in self.colors.items() if index == labels.ignore_index]
            parts.append(f"{len(self.colors) - len(hidden)} colors of classes")
            parts += [f"colors {', '.join(hidden)} = ignored"] if hidden else []
        return "; ".join(parts)

    def nearest(self, color: Color) -> Color:
        """Return the known color that is nearest to ``color``."""
        known = np.array(list(self.colors))
        best = known[((known - np.array(color)) ** 2).sum(1).argmin()].tolist()
        return best[0], best[1], best[2]

    def _decode(self, values: Stored, known: Mapping[Any, int], path: Path) -> npt.NDArray[np.int64]:
        if values.ndim == 2:
            if not known:
                raise DatasetError(
                    f"mask {path} holds single-channel ids, expected RGB colors", kind="id-mask", path=path
                )
            table = self._class_of_id if known is self.ids else _table(known)
            classes: npt.NDArray[np.int64] = table[values]
        else:
            if not known:
                raise DatasetError(
                    f"mask {path} is an RGB image, expected single-channel ids {ranges(self.ids)}",
                    kind="rgb-mask",
                    path=path,
                )
            codes = _pack(values)
            position = np.searchsorted(self._codes[:-1], codes)
            classes = np.where(self._codes[position] == codes, self._class_of_code[position], _NO_CLASS)
        missing = classes == _NO_CLASS
        if missing.any():
            row, column = np.argwhere(missing)[0]
            what = self._describe(values[row, column])
            raise DatasetError(
                f"mask {path} holds {what} at row {row}, column {column}",
                kind="unknown-id" if values.ndim == 2 else "unknown-color",
                path=path,
                got=what,
            )
        return classes

    @cached_property
    def _class_of_id(self) -> npt.NDArray[np.int64]:
        return _table(self.ids)

    @cached_property
    def _codes(self) -> npt.NDArray[np.int64]:
        """Packed colors in order, and one more than any color so that a search always ends on an entry."""
        return np.append(np.sort(_pack(np.array(list(self.colors)))), 1 << 24)

    @cached_property
    def _class_of_code(self) -> npt.NDArray[np.int64]:
        order = np.argsort(_pack(np.array(list(self.colors))))
        return np.append(np.array(list(self.colors.values()))[order], _NO_CLASS)

    def _describe(self, stored: npt.NDArray[np.integer[Any]]) -> str:
        if stored.ndim == 0:
            return f"id {stored}, expected {ranges(self.ids)}"
        color = stored[0].item(), stored[1].item(), stored[2].item()
        expected = f"expected one of the {len(self.colors)} colors of the classes"
        return f"color {color}, {expected}, of which {self.nearest(color)} is nearest"


def settle(decode: MaskDecoder, files: Iterable[Path]) -> MaskDecoder:
    """Decide what 255 stands for in masks of two classes, if nobody said it.

    Where the files together hold 0 and 255 and nothing else, 255 is the second class, as labeling tools store it.
    Where any file holds a 1, that is the second class and 255 is ignored. Files of 0 alone or 255 alone say nothing:
    they are read as ``decode`` reads them, which other files may have settled.
    """
    given, decode = decode, decode.plain or decode
    if not decode.open_255:
        return decode
    ignored = {value: index for value, index in decode.ids.items() if value != 255 and index not in (0, 1)}
    seen: set[int] = set()
    for file in files:
        seen |= _few_values(file) - ignored.keys()
        if not seen <= {0, 255}:
            return decode
    if seen != {0, 255}:
        return given if seen else decode
    return MaskDecoder(ids={0: 0, 255: 1, **ignored}, colors=decode.colors, plain=decode)


def _few_values(path: Path) -> frozenset[int]:
    """Return the ids in a mask file, and none for a file that holds something else or cannot be read."""
    try:
        status = path.stat()
        return _values_of(path, status.st_mtime_ns, status.st_size)
    except (OSError, ImageError):
        return frozenset()


@functools.lru_cache(maxsize=2**16)
def _values_of(path: Path, *_identity: int) -> frozenset[int]:
    stored = read_stored(path)
    values = stored.values[..., 0] if stored.equal_channels else stored.values
    if values.ndim == 3 or (not stored.numbered and set(stored.shown.values()) <= {BLACK, WHITE}):
        return frozenset()  # read by colors
    return frozenset(count_ids(values))


def _table(classes: Mapping[int, int]) -> npt.NDArray[np.int64]:
    table = np.full(LARGEST_ID + 1, _NO_CLASS)
    table[list(classes)] = list(classes.values())
    return table


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
    return {value: value for value in ids if 0 <= value <= LARGEST_ID}


# name, color and class of CamVid's 32 annotated objects; the grouping into 11 classes is SegNet's
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
