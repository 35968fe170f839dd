"""Values stored in the masks of a split, and the problems they show once all masks have been read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddsm_zoo.data.layouts import LABELED_SPLITS, Layout
from ddsm_zoo.data.masks import CAMVID_OBJECTS, CITYSCAPES_LABEL_IDS, CITYSCAPES_TRAIN_IDS, MaskDecoder, ranges
from ddsm_zoo.data.problems import SHOWN, Problem
from ddsm_zoo.labels import CITYSCAPES, Color, voc_color

# More colours than any palette: a photograph, or the result of lossy compression of a mask.
MOST_COLORS = 65536
LISTED_COLORS = 32
# This many values outside the classes, on less than half of the pixels, come from compression or interpolation. A
# wrong numbering has fewer. Another kind of image has them everywhere.
SMEARED = 16

_VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# name -> colour -> class
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

Stored = npt.NDArray[np.integer[Any]]
Counts = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class _Mask:
    """One mask: the number of different values, those that stand for no class, and on how many pixels."""

    file: str
    form: Literal["ids", "colors"]
    lossy: bool
    distinct: int
    binary: bool
    ignored: float
    unknown: tuple[int | Color, ...]
    unknown_count: int
    unknown_share: float

    @property
    def smeared(self) -> bool:
        if self.lossy:
            return self.distinct > 1
        return self.unknown_count >= SMEARED and self.unknown_share < 0.5

    def describe_unknown(self) -> str:
        if not self.unknown:
            return f"{self.file} ({_many(self.distinct)})"
        values = ", ".join(map(str, self.unknown))
        more = f" and {self.unknown_count - len(self.unknown)} more" if self.unknown_count > len(self.unknown) else ""
        return f"{self.file} ({values}{more} on {self.unknown_share:.1%} of it)"


class MaskCheck:
    """Check of the masks of one split, added one by one.

    ``ignored`` is the number of pixels without a class in all of them.
    """

    def __init__(self, layout: Layout, split: str, decode: MaskDecoder) -> None:
        self.layout, self.split, self.decode = layout, split, decode
        self.ignored = 0
        self._counts: list[Counts] = []
        self._masks: list[_Mask] = []
        self._renumbered: list[str] = []
        self._values: set[int] = set()  # of all masks with ids
        self._colors: Counter[Color] = Counter()  # of all RGB masks that cannot be decoded

    @property
    def counts(self) -> Counts:
        """Pixels of each class id (masks, K) in each readable mask, in their order."""
        return np.array(self._counts, np.int32).reshape(-1, len(self.layout.labels.in_masks))

    def add(self, file: str, stored: Stored, lossy: bool, palette: Mapping[int, Color] | None = None) -> None:
        """Count the values (H, W) or colours (H, W, 3) in the mask ``file``. A ``palette`` shows values as colours."""
        if stored.ndim == 2:
            counts = _count_ids(stored)
            self._add_values(file, "ids", counts, self.decode.ids, stored.size, lossy)
            self._compare(file, counts, palette or {})
            return
        colors, channel = _count_colors(stored), stored[..., 0]
        self._add_values(file, "colors", colors, self.decode.colors, channel.size, lossy)
        if not self.decode.colors:
            if len(self._colors) < MOST_COLORS:  # enough to tell that they are not from a palette
                self._colors.update(colors)
            if _is_gray(colors):  # ids stored three times
                self._add_values(file, "ids", _count_ids(channel), self.decode.ids, channel.size, lossy)

    def _add_values(
        self,
        file: str,
        form: Literal["ids", "colors"],
        counts: Mapping[Any, int],
        classes: Mapping[Any, int],
        size: int,
        lossy: bool,
    ) -> None:
        """Add the values of a mask: their pixels in ``counts``, ``size`` in all, and the known ones in ``classes``."""
        ignored = 0
        pixels = np.zeros(len(self.layout.labels.in_masks), np.int32)
        for value, count in counts.items():
            class_id = classes.get(value)
            if class_id == self.layout.labels.ignore_index:
                ignored += count
            elif class_id is not None:
                pixels[class_id] += count
        self._counts.append(pixels)
        self.ignored += ignored
        unknown = sorted((value for value in counts if value not in classes), key=lambda value: -counts[value])
        known_pixels = sum(count for value, count in counts.items() if value in classes)
        if form == "ids":
            self._values.update(counts)
        self._masks.append(
            _Mask(
                file=file,
                form=form,
                lossy=lossy,
                distinct=len(counts) or MOST_COLORS,
                binary=counts.keys() == {0, 255},
                ignored=ignored / size,
                unknown=tuple(unknown[:SHOWN]),
                unknown_count=len(unknown) if counts else MOST_COLORS,
                unknown_share=1 - known_pixels / size,
            )
        )

    def _compare(self, file: str, values: Iterable[int], palette: Mapping[int, Color]) -> None:
        """Compare palettes. Tools that shrink RGB masks number the colours arbitrarily, so such numbers are not ids."""
        for value in values:
            shown = self.decode.colors.get(palette.get(value, (-1, -1, -1)))
            if shown is not None and self.decode.ids and shown != self.decode.ids.get(value):
                self._renumbered.append(
                    f"{file} ({value} has the colour of {self.layout.labels.in_masks.names[shown]})"
                )
                return

    def problems(self) -> list[Problem]:
        """List the problems of the masks. Each mask counts once for its values."""
        problems = [self._rgb(), self._no_colors(), self._smeared()]
        if self.decode.ids:
            problems += [self._binary(), self._unknown_ids(), self._train_ids()]
        if self.decode.colors:
            problems += [self._unknown_colors(), self._palettes()]
        problems += [self._void(), self._empty_classes()]
        return [problem for problem in problems if problem.count]

    def _rgb(self) -> Problem:
        files = [mask.file for mask in self._masks if mask.form == "colors" and not self.decode.colors]
        recognized = describe_colors(self._colors, self.layout.labels.names)
        advice = "; ".join(filter(None, (recognized, self.layout.colored)))
        return self._problem("rgb-mask", "RGB colours instead of class ids in", files, advice)

    def _no_colors(self) -> Problem:
        files = [mask.file for mask in self._masks if mask.form == "ids" and not self.decode.ids]
        return self._problem(
            "id-mask", "class ids instead of colours in", files, "expected RGB images in the colours of the classes"
        )

    def _smeared(self) -> Problem:
        files = list(dict.fromkeys(f"{mask.file} ({_many(mask.distinct)})" for mask in self._masks if mask.smeared))
        advice = "as lossy compression and interpolation leave them: store masks as PNG, resize them with nearest"
        return self._problem("smeared-mask", "smeared values in", files, advice)

    def _binary(self) -> Problem:
        """Detect masks of 0 and 255 if 255 is ignored: they are readable, but all objects would be ignored."""
        files = [mask.file for mask in self._masks if mask.binary and not mask.lossy]
        ignored = 255 in self.decode.ids
        certain = not ignored or self._values <= {0, 255}
        advice = "where 255 is ignored" if ignored else f"expected {ranges(self.decode.ids)}"
        advice += ": if 255 stands for a class, store its id"
        severity: Literal["error", "warning"] = "error" if certain else "warning"
        return self._problem("binary-mask", "nothing but 0 and 255 in", files, advice, severity=severity)

    def _unknown_ids(self) -> Problem:
        masks = [mask for mask in self._masks if self._has_unknown(mask, "ids") and not mask.binary]
        what, advice = "ids that stand for no class in", f"expected {ranges(self.decode.ids)}"
        kind = "unknown-id"
        unknown = {value for value in self._values if value not in self.decode.ids}
        numbered = self._values - {255}
        if numbered and min(numbered) == 1 and max(numbered) == len(self.layout.labels):
            advice += ": these start at 1, subtract 1"
        elif self._expects_train_ids() and unknown and unknown <= CITYSCAPES_LABEL_IDS.ids.keys():
            kind, what = "label-ids", "label ids of Cityscapes instead of train ids in"
            advice += "; cityscapes:ROOT reads label ids"
        elif self.decode is CITYSCAPES_LABEL_IDS and unknown == {255} and max(numbered, default=0) < len(CITYSCAPES):
            kind, what = "train-ids", "train ids of Cityscapes instead of label ids in"
            advice += "; files with train ids are called NAME_gtFine_labelTrainIds.png"
        return self._problem(kind, what, [mask.describe_unknown() for mask in masks], advice)

    def _train_ids(self) -> Problem:
        """Detect train ids, which are readable as label ids of other classes. Street scenes have label ids above 18."""
        files = [mask.file for mask in self._masks]
        # the published test split is ignored throughout, with label ids up to 3
        suspicious = self.decode is CITYSCAPES_LABEL_IDS and max(self._values, default=99) < len(CITYSCAPES)
        suspicious &= bool(self.counts.any())
        advice = "where label ids reach 33; if these are train ids, call the files NAME_gtFine_labelTrainIds.png"
        what = f"nothing above {len(CITYSCAPES) - 1} in"
        return self._problem("train-ids", what, files if suspicious else [], advice, severity="warning")

    def _unknown_colors(self) -> Problem:
        masks = [mask for mask in self._masks if self._has_unknown(mask, "colors")]
        advice = f"expected one of the {len(self.decode.colors)} colours of the classes"
        return self._problem(
            "unknown-colour",
            "colours that stand for no class in",
            [mask.describe_unknown() for mask in masks],
            advice,
        )

    def _palettes(self) -> Problem:
        advice = 'save them as RGB, or remove "palette" from labels.json if the numbers are the ids'
        return self._problem("palette-mask", "numbers in the colours of other classes in", self._renumbered, advice)

    def _void(self) -> Problem:
        files = [mask.file for mask in self._masks if mask.ignored == 1]
        useless = len(files) == len(self._masks) and self.split in LABELED_SPLITS
        advice = "they teach nothing and are not scored"
        severity: Literal["error", "warning"] = "error" if useless else "warning"
        return self._problem("void-mask", "no pixel of any class in", files, advice, severity=severity)

    def _empty_classes(self) -> Problem:
        occurs = [bool(column.any()) for column in self.counts.T]
        names = [name for name, found in zip(self.layout.labels.in_masks.names, occurs, strict=True) if not found]
        return Problem(
            kind="empty-class",
            severity="warning",
            split=self.split,
            what="no pixel of",
            noun="classes",
            advice="which cannot be learnt from it, nor scored on it",
            count=len(names) if any(occurs) else 0,
            total=len(self.layout.labels.in_masks),
            examples=tuple(names),
        )

    def _expects_train_ids(self) -> bool:
        shared = {name.casefold() for name in self.layout.labels.names} & set(CITYSCAPES.names)
        return self.decode.ids == CITYSCAPES_TRAIN_IDS.ids and bool(shared)

    def _has_unknown(self, mask: _Mask, form: str) -> bool:
        return mask.form == form and mask.unknown_count > 0 and not mask.smeared

    def _problem(
        self,
        kind: str,
        what: str,
        files: list[str],
        advice: str,
        severity: Literal["error", "warning"] = "error",
    ) -> Problem:
        return Problem(
            kind=kind,
            severity=severity,
            split=self.split,
            what=what,
            advice=advice,
            count=len(files),
            total=len({mask.file for mask in self._masks}),
            examples=tuple(files[:SHOWN]),
        )


def describe_colors(counts: Mapping[Color, int], names: Iterable[str]) -> str:
    """Describe the colours of masks: the known palette they come from, ready to be copied, or the colours."""
    if not counts:
        return f"more than {MOST_COLORS} colours"
    if _is_gray(counts):
        return "the three channels are equal: store one of them"
    for palette, classes in _PALETTES.items():
        if sum(count for color, count in counts.items() if color in classes) < 0.99 * sum(counts.values()):
            continue
        by_name = {name.casefold(): color for color, name in classes.items()}
        wanted = [by_name.get(name.casefold()) for name in names]
        named = [] if None in wanted else wanted
        others = [f"{name} {list(color)}" for color, name in classes.items() if color in counts.keys() - named]
        offer = [f'"palette": {json.dumps(named)}'] if named else []
        return f"the colours of {palette}: {', '.join((*offer, *others))}"
    if len(counts) > LISTED_COLORS:
        return f"{len(counts)} colours of no known palette"
    return f"of no known palette: {', '.join(str(list(color)) for color in sorted(counts))}"


def _count_ids(stored: Stored) -> dict[int, int]:
    # Pillow counts bytes three times as fast
    counts = np.array(Image.fromarray(stored).histogram()) if stored.dtype == np.uint8 else np.bincount(stored.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _count_colors(stored: Stored) -> dict[Color, int]:
    """Count the pixels of each colour. Empty for more colours than any palette has."""
    counted: Any = Image.fromarray(stored.astype(np.uint8)).getcolors(MOST_COLORS)
    return {color: count for count, color in counted or ()}


def _is_gray(counts: Mapping[Color, int]) -> bool:
    return bool(counts) and all(red == green == blue for red, green, blue in counts)


def _many(distinct: int) -> str:
    return f"{'more than ' if distinct >= MOST_COLORS else ''}{distinct} values"
