"""Masks of class ids from annotations, in the frame of the upright image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ddsm_zoo.data.facts import ORIENTATION, orientation_of
from ddsm_zoo.data.images import image_size, open_header
from ddsm_zoo.data.importing.annotations import IGNORE, AnnotatedImage, Annotations, Findings, ImportOptions, Region
from ddsm_zoo.data.importing.shapes import BadShape
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.labels import Color, LabelSpace, voc_color

ClassIds = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Class ids of an import.

    Attributes:
        labels: Classes, colors and the ignored id that are written.
        ids: Class id, or the ignored one, by the source's label. None is ignored.
        rest: Class id of everything that is not annotated.
    """

    labels: LabelSpace
    ids: Mapping[str | None, int]
    rest: int


def class_table(annotations: Annotations, options: ImportOptions, findings: Findings) -> ClassTable:
    """Number the classes: the background first, unless the source has it elsewhere, then the source's classes.

    Raises DatasetError for an unknown name in ``options.ignore``, and if no class is left.
    """
    background = options.background or annotations.background
    ignored = {*annotations.ignored, *options.ignore}
    if unknown := sorted(set(options.ignore) - set(annotations.names)):
        raise DatasetError(
            f"--ignore has {', '.join(unknown)}, expected some of the classes {', '.join(annotations.names)}",
            kind="import",
            name="ignore",
            got=unknown,
            expected=annotations.names,
        )
    names = [name for name in annotations.names if name not in ignored]
    # the source's own word for everything else, such as labelme's _background_
    own = next((name for name in names if name.strip("_ ").lower() == "background"), None)
    if background == IGNORE:
        names = [name for name in names if name != own]
    elif own is None and background not in names:
        names = [background, *names]
    if not all(annotations.names):
        raise DatasetError("a class of the source has an empty name, expected a name for each", kind="import")
    for name in names:
        if any(other != name and other.lower() == name.lower() for other in names):
            findings.notes.add("classes whose names differ in capitals alone", name)
    renamed = {} if own is None else {own: background}
    written = list(dict.fromkeys(renamed.get(name, name) for name in names))
    if not written:
        raise DatasetError("no class is left: the annotations have none besides what is ignored", kind="import")
    if len(written) == 1 and background == IGNORE:
        raise DatasetError(
            f"{written[0]} is the only class and everything else is ignored: give --background a name", kind="import"
        )
    ignore_index = 255 if len(written) <= 255 else 65535
    ids: dict[str | None, int] = {name: written.index(renamed.get(name, name)) for name in names}
    ids |= dict.fromkeys((*ignored, None, *([own] if own not in ids else [])), ignore_index)
    labels = LabelSpace(
        names=tuple(written), palette=_palette(written, background, annotations.colors), ignore_index=ignore_index
    )
    return ClassTable(labels=labels, ids=ids, rest=ignore_index if background == IGNORE else written.index(background))


def _palette(names: Sequence[str], background: str, given: Mapping[str, Color]) -> tuple[Color, ...]:
    """Give each class the source's color, or one of Pascal VOC's where it has none or it is taken."""
    colors: dict[str, Color] = {}
    for name in names:
        color = given.get(name, (0, 0, 0) if name == background else None)
        if color is not None and color not in colors.values():
            colors[name] = color
    free = (color for index in range(1, 1 << 16) if (color := voc_color(index)) not in set(colors.values()))
    return tuple(colors[name] if name in colors else next(free) for name in names)


def draw(
    image: AnnotatedImage, file: Path, table: ClassTable, options: ImportOptions, findings: Findings
) -> ClassIds | None:
    """Draw the mask of an image (H, W), upright. None, with a finding, if annotations and image do not fit."""
    upright = image_size(file)
    with open_header(file) as header:
        orientation = orientation_of(header)
    stored = image.stored() if image.stored else None
    size = image.size if stored is None else stored.positions.shape
    turned = orientation >= 5 and size == upright[::-1] and size != upright
    if size is not None and size != upright and not turned:
        findings.left_out.add(
            "images of another size than their annotations",
            f"{image.name} ({upright[1]} x {upright[0]}, annotated {size[1]} x {size[0]})",
        )
        return None
    if turned:
        findings.notes.add("images annotated as stored, whose masks are turned upright by EXIF", image.name)
    elif orientation > 1:
        findings.notes.add("images turned by EXIF, whose annotations are taken as upright", image.name)
    frame = upright[::-1] if turned else upright
    if stored is None:
        mask = _draw_regions(image, frame, table, options, findings)
    else:
        if stored.unknown:
            what = "masks with values of unknown classes, which are ignored"
            findings.notes.add(what, f"{image.name} ({', '.join(stored.unknown[:3])})")
        ids = [table.ids[label] for label in stored.labels]
        mask = np.array([*ids, table.labels.ignore_index])[stored.positions]
    return _turn(mask, orientation) if turned else mask


def _draw_regions(
    image: AnnotatedImage, size: tuple[int, int], table: ClassTable, options: ImportOptions, findings: Findings
) -> ClassIds:
    mask = np.full(size, table.rest, np.int64)
    drawn = np.full(size, -1, np.int64)  # classes of areas, without everything else
    regions: Sequence[Region] = image.regions
    if options.overlap == "area":
        regions = sorted(regions, key=lambda region: (region.label is not None, -_area(region, size)))
    overlap = False
    for region in regions:
        try:
            pixels = region.paint(*size)
        except BadShape as error:
            findings.left_out.add(str(error), image.name)
            continue
        value = table.ids[region.label]
        if not pixels.any() and not region.maybe_empty:
            findings.left_out.add("areas that cover no pixel", f"{region.label} in {image.name}")
        if region.label is not None:
            overlap |= bool(((drawn[pixels] >= 0) & (drawn[pixels] != value)).any())
            drawn[pixels] = value
        mask[pixels] = value
    if overlap:
        top = "the smaller" if options.overlap == "area" else "the later"
        findings.notes.add(f"images where areas of several classes overlap, {top} one on top", image.name)
    return mask


def _area(region: Region, size: tuple[int, int]) -> int:
    try:
        return int(region.paint(*size).sum())
    except BadShape:
        return 0


def _turn(mask: ClassIds, orientation: int) -> ClassIds:
    image = Image.fromarray(mask.astype(np.int32))
    image.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
