"""Palettes of masks: the well-known ones, and those that contradict each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ddsm_zoo.data.mask_files import MaskFile
from ddsm_zoo.data.masks import CAMVID_OBJECTS, MaskDecoder
from ddsm_zoo.labels import CITYSCAPES, Color, voc_color

# More colors than any palette: a photograph, or the result of lossy compression of a mask.
MOST_COLORS = 65536
LISTED_COLORS = 32

_VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# name -> color -> class
_PALETTES: Mapping[str, Mapping[Color, str]] = {
    "PASCAL VOC": {voc_color(index): name for index, name in enumerate(_VOC_NAMES)} | {(224, 224, 192): "border"},
    "Cityscapes": dict(zip(CITYSCAPES.palette, CITYSCAPES.names, strict=True))
    | {
        (0, 0, 0): "void", (111, 74, 0): "dynamic", (81, 0, 81): "ground", (250, 170, 160): "parking",
        (230, 150, 140): "rail track", (180, 165, 180): "guard rail", (150, 100, 100): "bridge",
        (150, 120, 90): "tunnel", (0, 0, 90): "caravan", (0, 0, 110): "trailer",
    },
    "CamVid": {color: name for name, color, _ in CAMVID_OBJECTS},
}  # fmt: skip


class PaletteCheck:
    """Comparison of the palettes of masks whose indices are ids.

    Where a color has several indices, or an index several colors, the tool numbered the colors of each file as they
    came, and the indices are no ids. Gray ramps show no colors of classes.
    """

    def __init__(self) -> None:
        # for each palette, the colors by index that occur, and the first file
        self._seen: dict[tuple[Color, ...], tuple[dict[int, Color], str]] = {}

    def add(self, file: str, stored: MaskFile, decode: MaskDecoder) -> str | None:
        """Compare a mask with the earlier ones. Return the first contradiction, None if there is none.

        Masks that ``decode`` reads by their colors, or whose indices somebody gave a meaning, contradict nothing.
        """
        if not stored.palette or stored.numbered or decode.by_number:
            return None
        if decode.interpret(stored).classes is not decode.ids:
            return None
        for palette, (earlier, first) in self._seen.items():
            if palette != stored.palette and (found := _contradiction(stored, palette, earlier)):
                return f"{file} ({found[0]}, in {first} {found[1]})"
        self._seen.setdefault(stored.palette, ({}, file))[0].update(stored.shown)
        return None


def _contradiction(
    stored: MaskFile, palette: tuple[Color, ...], earlier: Mapping[int, Color]
) -> tuple[str, object] | None:
    """Find a color or an index that ``earlier`` masks show otherwise. A palette may have a color twice."""
    indices = {color: index for index, color in earlier.items()}
    for index, color in stored.shown.items():
        if earlier.get(index, color) != color:
            return f"{index} is {list(color)}", list(earlier[index])
        other = indices.get(color, index)
        if other != index and palette[index : index + 1] != (color,) and stored.palette[other : other + 1] != (color,):
            return f"{list(color)} is {index}", other
    return None


def describe_colors(counts: Mapping[Color, int], names: Iterable[str]) -> str:
    """Describe the colors of masks: the known palette they come from, ready to be copied, or the colors."""
    if not counts:
        return f"more than {MOST_COLORS} colors"
    for palette, classes in _PALETTES.items():
        if sum(count for color, count in counts.items() if color in classes) < 0.99 * sum(counts.values()):
            continue
        by_name = {name.casefold(): color for color, name in classes.items()}
        wanted = [by_name.get(name.casefold()) for name in names]
        named = [] if None in wanted else wanted
        others = [f"{name} {list(color)}" for color, name in classes.items() if color in counts.keys() - named]
        offer = [f'"palette": {json.dumps(named)}'] if named else []
        return f"the colors of {palette}: {', '.join((*offer, *others))}"
    if len(counts) > LISTED_COLORS:
        return f"{len(counts)} colors of no known palette"
    return f"of no known palette: {', '.join(str(list(color)) for color in sorted(counts))}"
