"""Readers of formats that store masks as images: Pascal VOC, Roboflow's semantic masks, ADE20K."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddsm_zoo.data.images import SUFFIXES
from ddsm_zoo.data.importing.annotations import (
    IGNORE,
    AnnotatedImage,
    Annotations,
    Findings,
    ImportOptions,
    StoredMask,
    read_text,
    readable,
)
from ddsm_zoo.data.importing.files import ImageFinder, posix, split_of, split_of_file, walk
from ddsm_zoo.data.mask_files import MaskFile, read_stored
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.labels import Color, voc_color

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_VOID, _VOID_COLOR = 255, voc_color(255)


class ColorMap(NamedTuple):
    """Classes of VOC masks in the order of their ids, with the color of each. ``exact``: colors precede ids."""

    colors: Mapping[str, Color]
    exact: bool


def read_voc(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    """Read SegmentationClass/ with the lists in ImageSets/Segmentation/. Raises DatasetError if there is none."""
    if not any(found for depth in ("", "*/", "*/*/") for found in source.glob(f"{depth}SegmentationClass*")):
        boxes = "; Annotations/ has boxes alone" if any(source.glob("**/Annotations/*.xml")) else ""
        raise DatasetError(
            f"{source} has no SegmentationClass, expected the folder that holds it{boxes}", kind="import", path=source
        )
    root = _below(source, "SegmentationClass*")
    masks = _voc_masks(root)
    classes = _color_map(root, findings)
    finder = ImageFinder(root, options.images or (root / "JPEGImages" if (root / "JPEGImages").is_dir() else None))
    by_name: dict[str, Path] = {}
    for path in finder.unused():
        if not path.is_relative_to(root) or not path.relative_to(root).parts[0].startswith("Segmentation"):
            by_name.setdefault(path.stem, path)
    images = []
    for name, split in _voc_splits(root, masks, findings).items():
        if name not in masks:
            findings.left_out.add("images without a mask, listed in ImageSets", name)
            continue
        image = by_name.pop(name, None)
        stored = partial(_voc_mask, masks[name], classes)
        images.append(AnnotatedImage(name=image.name if image else name, split=split, file=image, stored=stored))
    findings.left_out.add_files("images that no list names, or without a mask", by_name.values())
    return Annotations(names=list(classes.colors), images=images, colors=classes.colors)


def _below(source: Path, *patterns: str) -> Path:
    """Return the folder that holds all of these, ``source`` or one at most two below it."""
    for depth in ("", "*/", "*/*/"):
        for found in sorted(source.glob(f"{depth}{patterns[0]}")):
            if all(any(found.parent.glob(pattern)) for pattern in patterns):
                return found.parent
    raise DatasetError(
        f"{source} has no {' and '.join(patterns)}, expected the folder that holds them", kind="import", path=source
    )


def _voc_masks(root: Path) -> dict[str, Path]:
    for folder in sorted(root.glob("SegmentationClass*")):  # labelme has arrays in the one and images in the other
        masks = {file.stem: file for file in walk(folder) if file.suffix.lower() in SUFFIXES}
        if masks:
            return masks
    raise DatasetError(f"{root} has no masks in SegmentationClass, expected PNG images", kind="import")


def _voc_splits(root: Path, masks: Mapping[str, Path], findings: Findings) -> dict[str, str | None]:
    """Return the split of each name in the lists; trainval only adds what no other list has."""
    folder = root / "ImageSets" / "Segmentation"
    lists = sorted(folder.glob("*.txt"))
    if not lists:  # Main also has a list for each class
        lists = [file for file in sorted((root / "ImageSets" / "Main").glob("*.txt")) if split_of(file.stem)]
    splits: dict[str, str | None] = {}
    for file in sorted(lists, key=lambda file: file.stem == "trainval"):
        split = split_of_file(file, root)
        for line in read_text(file).splitlines():
            if line.strip():
                name = _listed_name(line.strip(), masks)
                if splits.setdefault(name, split) != split and file.stem != "trainval":
                    findings.notes.add("images in several lists, taken for the first", f"{name} in {splits[name]}")
    return splits or dict.fromkeys(masks)


def _listed_name(line: str, masks: Mapping[str, Path]) -> str:
    """Return the name of an image in a line: alone, with spaces, followed by 1 or -1, or as the path of a file."""
    first = posix(line.split()[0])
    file = PurePosixPath(first)
    names = (line, first, file.stem if file.suffix.lower() in SUFFIXES else file.name)
    return next((name for name in names if name in masks), first)


def _color_map(root: Path, findings: Findings) -> ColorMap:
    listed, named = root / "labelmap.txt", root / "class_names.txt"
    if listed.is_file():
        colors: dict[str, Color] = {}
        lines = [line for line in read_text(listed).splitlines() if line.strip() and not line.startswith("#")]
        with readable(listed, "labelmap.txt, name:red,green,blue:parts:actions"):
            for index, line in enumerate(lines):
                name, color, *_ = [*line.split(":"), ""]
                if re.search(r"\d\s*,\s*\d", name):
                    raise ArgumentError(f"{line.strip()[:60]!r} has no colon")
                red, green, blue = map(int, color.split(",")) if color.strip() else voc_color(index)
                if (red, green, blue) in colors.values():
                    raise ArgumentError(f"the color {red},{green},{blue} stands for two classes")
                colors[name.strip()] = (red, green, blue)
        return ColorMap(colors, exact=True)
    if named.is_file():
        names = [line.strip() for line in read_text(named).splitlines() if line.strip()]
        names = [name for name in names if name != "__ignore__"]
    else:
        names = list(VOC_NAMES)
        findings.notes.add("there is no labelmap.txt: the classes are the 21 of Pascal VOC", count=0)
    return ColorMap({name: voc_color(index) for index, name in enumerate(names)}, exact=False)


def _voc_mask(path: Path, classes: ColorMap) -> StoredMask:
    file = _read_mask(path)
    stored = file.values
    labels: list[str | None] = [*classes.colors, None]
    by_color = {color: index for index, color in enumerate(classes.colors.values())}
    by_color.setdefault(_VOID_COLOR, len(labels) - 1)
    if stored.ndim == 2 and classes.exact:
        shown = file.shown
        if shown and all(color in by_color for color in shown.values()):
            return _lookup(stored, {value: by_color[color] for value, color in shown.items()}, labels)
    if stored.ndim == 2:
        ids = {index: index for index in range(len(labels) - 1)}
        ids = {_VOID: len(labels) - 1} | ids
        return _lookup(file.numbers(ids), ids, labels)
    values = stored.astype(np.int64) @ (65536, 256, 1)
    table = {red * 65536 + green * 256 + blue: index for (red, green, blue), index in by_color.items()}
    return _lookup(values, table, labels, lambda value: f"{value >> 16},{value >> 8 & 255},{value & 255}")


def _read_mask(path: Path) -> MaskFile:
    stored = read_stored(path)
    if stored.lossy:
        raise DatasetError(
            f"mask {path} is compressed with losses, which changes ids: export the masks again as PNG",
            kind="import",
            path=path,
        )
    return stored


def _lookup(
    stored: npt.NDArray[np.integer[Any]], table: Mapping[int, int], labels: Sequence[str | None], show: object = str
) -> StoredMask:
    """Replace each stored value by its index in the labels, -1 for values that the table lacks."""
    values, inverse = np.unique(stored, return_inverse=True)
    index = np.array([table.get(int(value), -1) for value in values], dtype=np.int64)
    assert callable(show)
    unknown = [show(int(value)) for value in values if int(value) not in table]
    return StoredMask(index[inverse].reshape(stored.shape), labels, unknown)


def read_roboflow(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    """Read folders with _classes.csv, and a NAME_mask.png beside each image. Raises DatasetError."""
    tables = [file for file in walk(source) if file.name == "_classes.csv"]
    if not tables:
        raise DatasetError(
            f'{source} has no _classes.csv, expected train/ or others with one, as Roboflow exports "Semantic '
            'Segmentation Masks"',
            kind="import",
            path=source,
        )
    tables.sort(key=lambda file: split_of_file(file, source) != "train")
    names: dict[str, None] = {}
    images: list[AnnotatedImage] = []
    for file in tables:
        classes = _pixel_values(file)
        names.update(dict.fromkeys(classes.values()))
        split = split_of(*reversed(file.parent.relative_to(source).parts))
        images += _beside(file.parent, split, classes, options, findings)
    return Annotations(names=list(names), images=images)


def _pixel_values(file: Path) -> dict[int, str]:
    rows = list(csv.reader(read_text(file).splitlines(), skipinitialspace=True))
    with readable(file, "_classes.csv, with a pixel value and a class in each line"):
        rows = [row for row in rows if row]
        if rows and not rows[0][0].strip().isdigit():  # the head of the table
            del rows[0]
        classes = {int(row[0]): row[1].strip() for row in rows}
        if not classes:
            raise ArgumentError("it has no class")
        if len(classes) < len(rows):
            raise ArgumentError("it has a pixel value twice")
        return classes


def _beside(
    folder: Path, split: str | None, classes: Mapping[int, str], options: ImportOptions, findings: Findings
) -> list[AnnotatedImage]:
    place = folder if options.images is None else options.images / (folder.name if split else "")
    files = [file for file in walk(place) if file.suffix.lower() in SUFFIXES and not file.stem.endswith("_mask")]
    masks = {file.stem.removesuffix("_mask"): file for file in walk(folder) if file.match("*_mask.png")}
    images = []
    for file in files:
        if (mask := masks.pop(file.stem, None)) is None:
            findings.left_out.add("images without a mask", file.name)
        else:
            images.append(AnnotatedImage(name=file.name, split=split, file=file, stored=partial(_ids, mask, classes)))
    images += [
        AnnotatedImage(name=name, split=split, file=None, stored=partial(_ids, mask, classes))
        for name, mask in masks.items()
    ]
    return images


def _ids(path: Path, classes: Mapping[int, str]) -> StoredMask:
    """Read a mask of ids, also one that stores them in three equal channels."""
    file = _read_mask(path)
    if file.values.ndim == 3 and not file.equal_channels:
        raise DatasetError(
            f"mask {path} is an RGB image in colors, expected single-channel ids", kind="import", path=path
        )
    stored = file.values[..., 0] if file.equal_channels else file.numbers(classes)
    return _lookup(stored, {value: index for index, value in enumerate(classes)}, list(classes.values()))


def read_ade20k(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    """Read ADEChallengeData2016, the release with 150 classes, whose 0 is no class. Raises DatasetError."""
    root = _below(source, "objectInfo150.txt", "annotations", *(() if options.images else ("images",)))
    names = _ade_names(root / "objectInfo150.txt")
    classes = dict(enumerate(("background", *names)))
    images = []
    for split_folder in sorted(path for path in (root / "annotations").iterdir() if path.is_dir()):
        folder = (options.images or root / "images") / split_folder.name
        files = {file.stem: file for file in walk(folder) if file.suffix.lower() in SUFFIXES}
        for mask in (file for file in walk(split_folder) if file.suffix.lower() in SUFFIXES):
            file = files.pop(mask.stem, None)
            stored = partial(_ids, mask, classes)
            name = file.name if file else mask.stem
            images.append(AnnotatedImage(name=name, split=split_of(split_folder.name), file=file, stored=stored))
        findings.left_out.add_files("images without a mask", files.values())
    return Annotations(names=["background", *names], images=images, background=IGNORE)


def _ade_names(file: Path) -> list[str]:
    """Return the first of each class's names, or all of them where two classes have the same first one."""
    with readable(file, "objectInfo150.txt"):
        rows = [re.split(r"\t+", line.strip()) for line in read_text(file).splitlines() if line.strip()]
        full = [row[-1].strip() for row in rows if row[0].strip().isdigit()]
    short = [name.split(",")[0].strip() for name in full]
    return [first if short.count(first) == 1 else name for first, name in zip(short, full, strict=True)]
