"""Values stored in the masks of a split, and the problems they show once all masks have been read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddsm_zoo.data.check.palettes import MOST_COLORS, PaletteCheck, describe_colors
from ddsm_zoo.data.layouts import LABELED_SPLITS, Layout
from ddsm_zoo.data.mask_files import MaskFile, Stored, count_ids
from ddsm_zoo.data.masks import CITYSCAPES_LABEL_IDS, CITYSCAPES_TRAIN_IDS, MaskDecoder, ranges
from ddsm_zoo.data.problems import SHOWN, Problem, Severity
from ddsm_zoo.labels import CITYSCAPES, Color

# This many values outside the classes, on less than half of the pixels, come from compression or interpolation. A
# wrong numbering has fewer. Another kind of image has them everywhere.
SMEARED = 16
# At least this share of the numbers up to the largest occurs where objects are numbered; some are drawn over
NUMBERED = 0.8
# Share of the pixels without a class that continue to the right and below. Smeared values lie along borders, one pixel
# wide; numbers of objects fill areas.
FILLED = 0.3
# With more classes than this, nobody wants to read about each in a message
MAPPED = 24
# Label ids that streets rarely show (rail track, guard rail, bridge, tunnel). As train ids: sky, truck, bus, train.
_RARE_LABEL_IDS = frozenset({10, 14, 15, 16})

Counts = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class _Mask:
    """One mask: the number of different values, those that stand for no class, and on how many pixels."""

    file: str
    form: Literal["ids", "palette", "colors"]
    lossy: bool
    distinct: int
    binary: bool
    ignored: float
    unknown: tuple[int | Color, ...]
    unknown_count: int
    unknown_pixels: int
    unknown_share: float
    ends_known: bool
    filled: bool
    numbered: bool

    @property
    def smeared(self) -> bool:
        """True for values that compression or interpolation left: many, or few between 0 and 255."""
        between = self.ends_known and self.unknown_count > 1
        many = self.unknown_count >= SMEARED and not self.filled
        return self.lossy or ((many or between) and self.unknown_share < 0.5)


class MaskCheck:
    """Check of the masks of one split, added one by one.

    ``ignored`` is the number of pixels without a class in all of them. ``palettes`` has the palettes of other splits
    too.
    """

    def __init__(self, layout: Layout, split: str, decode: MaskDecoder, palettes: PaletteCheck) -> None:
        self.layout, self.split, self.decode, self.palettes = layout, split, decode, palettes
        self.names = layout.labels.in_masks.names
        self.ignored = 0
        self._counts: list[Counts] = []
        self._masks: list[_Mask] = []
        self._contradicting: list[str] = []
        self._see_through: list[str] = []
        self._alpha_alone = True
        self._rotated: list[str] = []
        self._pages: list[str] = []
        self._nodata: list[str] = []
        self._values: set[int] = set()  # of all masks with ids, except smeared ones
        self._both = False  # whether a mask holds both 1 and 255
        self._colors: Counter[Color] = Counter()  # of all RGB masks that cannot be decoded

    @property
    def counts(self) -> Counts:
        """Pixels of each class id (masks, K) in each readable mask, in their order."""
        return np.array(self._counts, np.int32).reshape(-1, len(self.names))

    def add(self, file: str, stored: MaskFile) -> None:
        """Count the values of the mask ``file`` as they are read."""
        values, classes = self.decode.interpret(stored)
        if values.ndim == 2:
            counts: Mapping[Any, int] = count_ids(values)
            form: Literal["ids", "palette", "colors"] = "ids" if classes is self.decode.ids else "palette"
            self._both |= form == "ids" and {1, 255} <= counts.keys()
            counted = classes.get(stored.nodata, self.layout.labels.ignore_index) != self.layout.labels.ignore_index
            self._nodata += [f"{file} ({stored.nodata})"] if counted and stored.nodata in counts else []
            contradiction = self.palettes.add(file, stored, self.decode)
            self._contradicting += [contradiction] if contradiction else []
        else:
            form = "colors"
            counts = _count_colors(values)
            if not classes and len(self._colors) < MOST_COLORS:  # enough to tell that they are not from a palette
                self._colors.update(counts)
        self._rotated += [file] if stored.rotated else []
        self._pages += [f"{file} ({stored.pages})"] if stored.pages > 1 else []
        if stored.see_through:
            self._see_through.append(file)
            self._alpha_alone &= len(counts) == 1
        unknown = counts.keys() - classes.keys() if form == "ids" else set()
        filled = bool(unknown) and _is_filled(values, np.isin(values, list(unknown)))
        self._add_values(file, form, counts, classes, lossy=stored.lossy, filled=filled)

    def _add_values(
        self,
        file: str,
        form: Literal["ids", "palette", "colors"],
        counts: Mapping[Any, int],
        classes: Mapping[Any, int],
        *,
        lossy: bool,
        filled: bool,
    ) -> None:
        """Add the values of a mask: their pixels in ``counts``, and the known ones in ``classes``."""
        ignored = 0
        pixels = np.zeros(len(self.names), np.int32)
        for value, count in counts.items():
            class_id = classes.get(value)
            if class_id == self.layout.labels.ignore_index:
                ignored += count
            elif class_id is not None:
                pixels[class_id] += count
        size = sum(counts.values()) or 1  # 0 if there are too many colors to count
        self._counts.append(pixels)
        self.ignored += ignored
        unknown = sorted((value for value in counts if value not in classes), key=lambda value: -counts[value])
        unknown_pixels = sum(counts[value] for value in unknown)
        numbers = counts.keys() - {0, 255} if filled else set()
        mask = _Mask(
            file=file,
            form=form,
            lossy=lossy,
            distinct=len(counts) or MOST_COLORS,
            binary=form == "ids" and counts.keys() == {0, 255},
            ignored=ignored / size,
            unknown=tuple(unknown[:SHOWN]),
            unknown_count=len(unknown) if counts else MOST_COLORS,
            unknown_pixels=unknown_pixels,
            unknown_share=unknown_pixels / size if counts else 1.0,
            ends_known=form == "ids" and len(self.names) == 2 and {0, 255} <= counts.keys(),
            filled=filled,
            numbered=len(numbers) > NUMBERED * max(numbers, default=0),
        )
        self._masks.append(mask)
        if form == "ids" and not mask.smeared:
            self._values.update(counts)

    def problems(self) -> list[Problem]:
        """List the problems of the masks. Each mask counts once for its values."""
        problems = [self._rgb(), self._no_colors(), self._smeared(), self._palettes(), self._alpha()]
        problems += [self._turned(), self._more_pages(), self._no_data()]
        if self.decode.ids:
            problems += [self._read_as_binary(), self._binary(), self._unknown_ids(), self._train_ids()]
        if self.decode.colors:
            problems += [self._unknown_colors()]
        problems += [self._void(), self._empty_classes()]
        return [problem for problem in problems if problem.count]

    def _rgb(self) -> Problem:
        files = [mask.file for mask in self._masks if mask.form == "colors" and not self.decode.colors]
        recognized = describe_colors(self._colors, self.names)
        advice = "; ".join(filter(None, (recognized, self.layout.colored)))
        return self._problem("rgb-mask", "RGB colors instead of class ids in", files, advice)

    def _no_colors(self) -> Problem:
        files = [mask.file for mask in self._masks if mask.form == "ids" and not self.decode.ids]
        return self._problem(
            "id-mask", "class ids instead of colors in", files, "expected RGB images in the colors of the classes"
        )

    def _smeared(self) -> Problem:
        files = [f"{mask.file} ({_many(mask.distinct)})" for mask in self._masks if mask.smeared]
        advice = "as lossy compression and interpolation leave them: store masks as PNG, resize them with nearest"
        return self._problem("smeared-mask", "smeared values in", files, advice)

    def _palettes(self) -> Problem:
        advice = "where each file numbers its colors anew, indices are no ids" + self._setting(
            ': give "palette" in labels.json, the color of each name, or "ids", the class of each index, if the '
            "indices are right all the same"
        )
        return self._problem("palette-mask", "palettes that contradict each other in", self._contradicting, advice)

    def _alpha(self) -> Problem:
        what, advice = "an alpha channel, which is not read, in", "expected ids or colors without transparency"
        severity: Severity = "error" if self._alpha_alone else "warning"
        return self._problem("alpha-mask", what, self._see_through, advice, severity=severity)

    def _turned(self) -> Problem:
        what, advice = "an EXIF rotation in", "which are turned upright by it, as images are"
        return self._problem("exif-rotated", what, self._rotated, advice, severity="warning")

    def _more_pages(self) -> Problem:
        what = "more than one page or frame in"
        advice = "of which the first is read: store one mask for each image, with the id of each class"
        return self._problem("more-pages", what, self._pages, advice, severity="warning")

    def _no_data(self) -> Problem:
        advice = "which is read as a class" + self._setting(': if it is none, give "ignore" in labels.json')
        return self._problem("nodata", "GDAL's value for no data in", self._nodata, advice, severity="warning")

    def _read_as_binary(self) -> Problem:
        """Say that 255 is read as the second class, which nobody said."""
        files = [mask.file for mask in self._masks if mask.form == "ids"] if self.decode.plain else []
        advice = f"as {self.names[0]} and {self.names[1]}" + self._setting(
            '; "ids" in labels.json can say something else'
        )
        return self._problem("binary-mask", "0 and 255 read as 0 and 1 in", files, advice, severity="note")

    def _binary(self) -> Problem:
        """Detect masks of 0 and 255 if 255 is ignored: they are readable, but all objects would be ignored."""
        void = self.decode.ids.get(255) == self.layout.labels.ignore_index
        readable = 255 in self.decode.ids and not void
        files = [] if readable else [mask.file for mask in self._masks if mask.binary and not mask.lossy]
        contradicting = self.decode.open_255 and 1 in self._values and not self._both
        certain = not void or self._values <= {0, 255} or contradicting
        advice = "where others hold 0 and 1" if contradicting else "where 255 is ignored"
        advice = advice if void else f"expected {ranges(self.decode.ids)}"
        remedy = _ids_offer([0, 255], self.names) if len(self.names) == 2 else '"ids": {"255": "NAME OF THE CLASS"}'
        advice += self._setting(f": if 255 stands for a class, say so in labels.json, {remedy}")
        severity: Severity = "error" if certain else "warning"
        return self._problem("binary-mask", "nothing but 0 and 255 in", files, advice, severity=severity)

    def _unknown_ids(self) -> Problem:
        masks = [mask for mask in self._masks if self._has_unknown(mask, "ids") and not mask.binary]
        what, advice = "ids that stand for no class in", f"expected {ranges(self.decode.ids)}"
        kind, count = "unknown-id", len(self.names)
        unknown = {value for value in self._values if value not in self.decode.ids}
        numbered = self._values - {255}
        if not unknown:
            pass
        elif self._expects_train_ids() and unknown <= CITYSCAPES_LABEL_IDS.ids.keys():
            kind, what = "label-ids", "label ids of Cityscapes instead of train ids in"
            advice += "; cityscapes:ROOT reads label ids"
        elif self.decode is CITYSCAPES_LABEL_IDS and unknown == {255} and max(numbered, default=0) < len(CITYSCAPES):
            kind, what = "train-ids", "train ids of Cityscapes instead of label ids in"
            advice += "; files with train ids are called NAME_gtFine_labelTrainIds.png"
        elif self._numbers_objects(masks):
            advice += (
                ": if these are numbers of objects (instances), store the class of each pixel instead, for a single "
                "kind of object 1 wherever the number is not 0"
            )
            advice += self._setting('; if they are classes, add their names to "names" in labels.json')
        elif self.decode.open_255 and {0, 255} <= self._values:
            advice += (
                ": 0 and 255 alone would be two classes; values between them come from smooth edges: export masks "
                "without antialiasing"
            )
            advice += self._setting(', or say by "ids" in labels.json what each value stands for')
        elif numbered and max(numbered) == count and min(numbered) == 1:
            advice += ": these start at 1, subtract 1" + self._setting(' or say "zero": "ignore" in labels.json')
        elif unknown == {count}:
            advice += self._setting(
                ': if 0 is unlabeled and classes start at 1, say "zero": "ignore" in labels.json; '
                f'if {count} is a class too, add its name to "names"'
            )
        elif len(self._values) == count <= MAPPED:
            offer = _ids_offer(sorted(self._values), self.names)
            advice += self._setting(f": if these are the classes in this order, say {offer}")
        else:
            advice += self._setting('; "ids" in labels.json says what each stored value stands for')
        return self._problem(kind, what, [self._describe_unknown(mask) for mask in masks], advice)

    def _numbers_objects(self, masks: list[_Mask]) -> bool:
        """True if each mask may number its objects: filled areas, up to another number in each mask."""
        most = max((mask.unknown_count for mask in masks), default=0)
        differ = any(mask.unknown_count < most for mask in masks)
        return differ and most > len(self.names) and all(mask.numbered for mask in masks)

    def _train_ids(self) -> Problem:
        """Detect train ids, which are readable as label ids of other classes. Street scenes have label ids above 18."""
        files = [mask.file for mask in self._masks]
        # the published test split is ignored throughout, with label ids up to 3
        suspicious = self.decode is CITYSCAPES_LABEL_IDS and max(self._values, default=99) < len(CITYSCAPES)
        suspicious &= bool(self.counts.any())
        severity: Severity = "error" if self._values & _RARE_LABEL_IDS else "warning"
        advice = "where label ids reach 33; if these are train ids, call the files NAME_gtFine_labelTrainIds.png"
        what = f"nothing above {len(CITYSCAPES) - 1} in"
        return self._problem("train-ids", what, files if suspicious else [], advice, severity=severity)

    def _unknown_colors(self) -> Problem:
        masks = [mask for mask in self._masks if self._has_unknown(mask, "colors")]
        advice = f"expected one of the {len(self.decode.colors)} colors of the classes"
        if all(len(set(color)) == 1 for mask in masks for color in mask.unknown if not isinstance(color, int)):
            advice += self._setting('; where three equal channels are ids, remove "palette" from labels.json')
        else:
            advice += self._setting('; "ignore_colors" in labels.json names colors without a class')
        return self._problem(
            "unknown-color", "colors that stand for no class in", list(map(self._describe_unknown, masks)), advice
        )

    def _void(self) -> Problem:
        files = [mask.file for mask in self._masks if mask.ignored == 1]
        useless = len(files) == len(self._masks) and self.split in LABELED_SPLITS
        advice = "they teach nothing and are not scored"
        severity: Severity = "error" if useless else "warning"
        return self._problem("void-mask", "no pixel of any class in", files, advice, severity=severity)

    def _empty_classes(self) -> Problem:
        occurs = [bool(column.any()) for column in self.counts.T]
        names = [name for name, found in zip(self.names, occurs, strict=True) if not found]
        return Problem(
            kind="empty-class",
            severity="warning",
            split=self.split,
            what="no pixel of",
            noun="classes",
            advice="which cannot be learned from it, nor scored on it",
            count=len(names) if any(occurs) else 0,
            total=len(self.names),
            examples=tuple(names[:MAPPED]),
        )

    def _setting(self, advice: str) -> str:
        """Return advice on ``labels.json`` or, where the layout reads none, the way to one that does."""
        fixed = "; this layout reads no labels.json: for other values, arrange the data as folder:ROOT with one"
        return advice if self.layout.label_file else fixed

    def _expects_train_ids(self) -> bool:
        shared = {name.casefold() for name in self.names} & set(CITYSCAPES.names)
        return self.decode.ids == CITYSCAPES_TRAIN_IDS.ids and bool(shared)

    def _has_unknown(self, mask: _Mask, form: str) -> bool:
        return mask.form == form and mask.unknown_count > 0 and not mask.smeared

    def _describe_unknown(self, mask: _Mask) -> str:
        if not mask.unknown:
            return f"{mask.file} ({_many(mask.distinct)})"
        values = ", ".join(map(self._describe_value, mask.unknown))
        more = f" and {mask.unknown_count - len(mask.unknown)} more" if mask.unknown_count > len(mask.unknown) else ""
        return f"{mask.file} ({values}{more} on {mask.unknown_share:.1%} of it, {mask.unknown_pixels} pixels)"

    def _describe_value(self, value: int | Color) -> str:
        if isinstance(value, int):
            return str(value)
        near = self.decode.nearest(value)
        class_id = self.decode.colors[near]
        name = self.names[class_id] if class_id < len(self.names) else "ignored"
        return f"{value} nearest {name} {near}"

    def _problem(self, kind: str, what: str, files: list[str], advice: str, severity: Severity = "error") -> Problem:
        return Problem.of(
            files,
            kind=kind,
            severity=severity,
            split=self.split,
            what=what,
            advice=advice,
            total=len(self._masks),
        )


def _ids_offer(values: list[int], names: tuple[str, ...]) -> str:
    """Return the line for ``labels.json`` that gives these stored values to the classes in their order."""
    return f'"ids": {json.dumps(dict(zip(map(str, values), names, strict=True)), ensure_ascii=False)}'


def _count_colors(stored: Stored) -> dict[Color, int]:
    """Count the pixels of each color. Empty for more colors than any palette has."""
    counted: Any = Image.fromarray(stored.astype(np.uint8)).getcolors(MOST_COLORS)
    return {color: count for count, color in counted or ()}


def _is_filled(values: Stored, chosen: npt.NDArray[np.bool_]) -> bool:
    """True if the chosen pixels are areas of one value rather than borders of one pixel. Both arrays are (H, W)."""
    inner = chosen[:-1, :-1] & (values[:-1, :-1] == values[:-1, 1:]) & (values[:-1, :-1] == values[1:, :-1])
    return float(inner.sum()) > FILLED * float(chosen.sum())


def _many(distinct: int) -> str:
    return f"{'more than ' if distinct >= MOST_COLORS else ''}{distinct} values"
