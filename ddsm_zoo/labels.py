"""Meaning of class ids: names, colors and the ignored id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ddsm_zoo.errors import ArgumentError

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """Classes of a task. Class id ``i`` has the name ``names[i]`` and the color ``palette[i]``.

    A single name is a binary task: models give one logit per pixel, and masks hold 0 for the background and 1 for the
    class, see `in_masks`.

    Attributes:
        names: Name of each class, all different.
        palette: RGB color of each class, 0 to 255.
        ignore_index: Id of pixels without a class. Losses and metrics leave them out.

    Raises:
        ValueError: The numbers of names and colors differ, a name occurs twice, a color is out of range, or
            ``ignore_index`` is also a class id.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = 255

    def __post_init__(self) -> None:
        if not self.names:
            raise ArgumentError("a label space needs at least one class name, got none", name="names", got=())
        if len(self.palette) != len(self.names):
            raise ArgumentError(
                f"got {len(self.palette)} colors for {len(self.names)} class names, expected one each",
                name="palette",
                got=len(self.palette),
                expected=len(self.names),
            )
        repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if repeated:
            raise ArgumentError(
                f"class names must differ, got {', '.join(repeated[:3])} more than once", name="names", got=repeated
            )
        if wrong := [color for color in self.palette if any(not 0 <= value <= 255 for value in color)]:
            raise ArgumentError(
                f"palette has the color {list(wrong[0])}, expected values from 0 to 255",
                name="palette",
                got=wrong[0],
                expected="values from 0 to 255",
            )
        if 0 <= self.ignore_index < max(2, len(self.names)):
            taken = self.names if len(self.names) > 1 else (_background(self.names[0]), *self.names)
            raise ArgumentError(
                f"ignore_index {self.ignore_index} is also the id of class {taken[self.ignore_index]!r}; "
                "use an id outside the classes, for example 255",
                name="ignore_index",
                got=self.ignore_index,
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def in_masks(self) -> LabelSpace:
        """Classes of the ids in masks: these or, for a single class, black background (0) and the class (1)."""
        if len(self.names) > 1:
            return self
        background = _background(self.names[0])
        return LabelSpace(
            names=(background, *self.names), palette=(voc_color(0), *self.palette), ignore_index=self.ignore_index
        )

    @classmethod
    def from_names(cls, names: Sequence[str], ignore_index: int = 255) -> LabelSpace:
        """Build a label space in the PASCAL VOC colors, for tasks without colors of their own.

        Args:
            names: Name of each class, all different.
            ignore_index: Id of pixels without a class.
        """
        return cls(
            names=tuple(names),
            palette=tuple(voc_color(index + 1) for index in range(len(names))),
            ignore_index=ignore_index,
        )


def _background(name: str) -> str:
    """Return the name of the pixels outside the only class ``name``."""
    return "background" if name.casefold() != "background" else "not background"


def voc_color(index: int) -> Color:
    """Return entry ``index`` of the PASCAL VOC color map: the bits of the index spread over R, G and B."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


CITYSCAPES = LabelSpace(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
        (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip

CAMVID = LabelSpace(
    names=(
        "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian",
        "Bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip
