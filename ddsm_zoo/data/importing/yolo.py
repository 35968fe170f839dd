"""Reader of YOLO's segmentation format: data.yaml, and a text file of polygons for each image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddsm_zoo.data.images import SUFFIXES
from ddsm_zoo.data.importing import shapes
from ddsm_zoo.data.importing.annotations import (
    AnnotatedImage,
    Annotations,
    Findings,
    ImportOptions,
    Region,
    read_text,
    readable,
)
from ddsm_zoo.data.importing.files import posix, split_of, walk
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.errors import ArgumentError, PackageError

_FARTHEST = 2  # polygons end at the border, so fractions are at most 1, but for rounding


def read_yolo(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    """Read the splits of a data.yaml, or images/ and labels/ with classes.txt. Raises DatasetError."""
    file = _yaml_file(source)
    if file is None:
        return _plain(source, options, findings)
    if options.images is not None:
        raise DatasetError(
            f"--images is of no use here: {file} names the folders of the images", kind="import", path=file
        )
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise PackageError.needed("YOLO's data.yaml needs", "pyyaml", "formats") from error
    with readable(file, "YAML"):
        try:
            content = yaml.safe_load(read_text(file))
        except yaml.YAMLError as error:
            raise ArgumentError(str(error)) from error
    with readable(file, "YOLO's data.yaml"):
        if not isinstance(content, dict) or not content.get("names"):
            raise ArgumentError("it has no names, expected the names of the classes by their numbers")
        stored = content["names"]
        listed = stored if isinstance(stored, dict) else dict(enumerate(stored))
        if switch := next((str(name) for name in listed.values() if isinstance(name, bool)), ""):
            raise ArgumentError(f"YAML reads a name such as yes, no, on or off as {switch}: put it in quotes")
        names = dict(sorted((int(index), str(name).strip()) for index, name in listed.items()))
        if isinstance(count := content.get("nc"), int) and count != len(names):
            findings.notes.add(f"names in {file.name} where nc says {count}", count=len(names))
        keypoints = "kpt_shape" in content
        images: list[AnnotatedImage] = []
        for split in ("train", "val", "test"):
            for entry in _entries(content.get(split)):
                for path in _images(file, content.get("path"), entry, findings):
                    labels = _labels_of(path)
                    images.append(_image(path, labels, file.parent, split, names, options, findings, keypoints))
    _note_repeated(list(names.values()), findings)
    _note_unused(images, findings)
    return Annotations(names=list(dict.fromkeys(names.values())), images=images)


def _yaml_file(source: Path) -> Path | None:
    if source.is_file():
        return source
    files = sorted((*source.glob("*.yaml"), *source.glob("*.yml")))
    named = [file for file in files if file.stem == "data"]
    if not named and len(files) > 1:
        raise DatasetError(
            f"{source} has {len(files)} YAML files, expected one: name the file instead of the folder",
            kind="import",
            path=source,
        )
    return next(iter(named or files), None)


def _plain(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    listed = next((path for name in ("classes.txt", "obj.names") if (path := source / name).is_file()), None)
    if listed is None:
        raise DatasetError(
            f"{source} has no data.yaml, nor classes.txt, expected one of them with the names of the classes, "
            "classes.txt with one a line",
            kind="import",
            path=source,
        )
    lines = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
    names = dict(enumerate(lines))
    below = source / "images" if (source / "images").is_dir() else source  # else SPLIT/images with SPLIT/labels
    folder = (options.images or below).expanduser()
    paths = [path for path in walk(folder) if path.suffix.lower() in SUFFIXES]
    images = []
    for path in paths:
        split = split_of(*reversed(path.parent.relative_to(folder).parts))
        elsewhere = (source / "labels" / path.relative_to(folder)).with_suffix(".txt")
        labels = elsewhere if options.images else _labels_of(path)
        images.append(_image(path, labels, folder, split, names, options, findings))
    _note_repeated(lines, findings)
    if not options.images:
        _note_unused(images, findings)
    return Annotations(names=list(dict.fromkeys(lines)), images=images)


def _note_repeated(names: Sequence[str], findings: Findings) -> None:
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            findings.notes.add("classes with the name of another, which become one class", name, names.count(name) - 1)


def _note_unused(images: Sequence[AnnotatedImage], findings: Findings) -> None:
    """Count the files of labels that no image has, in the folders of those that images have."""
    used = {_labels_of(image.file) for image in images if isinstance(image.file, Path)}
    for folder in sorted({path.parent for path in used if path.parent.is_dir()}):
        files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".txt" and path not in used)
        what = "files of labels without an image (NAME.txt for NAME.jpg)"
        findings.left_out.add_files(what, (path for path in files if _has_polygon(path)))


def _has_polygon(file: Path) -> bool:
    """Return True if the first line of a file is numbers, as in no list of classes or images."""
    first = file.read_bytes()[:4096].decode("utf-8", "replace").partition("\n")[0].split()
    return len(first) > 4 and all(re.fullmatch(r"[\d.eE+-]+", word) for word in first)


def _entries(entry: Any) -> list[str]:
    return [str(part) for part in (entry if isinstance(entry, list) else [entry]) if part]


def _images(file: Path, base: Any, entry: str, findings: Findings) -> Iterator[Path]:
    """Yield the images of a folder or a list. Paths start at ``path``, or where the file is, as tools write both."""
    roots = [file.parent / str(base or "."), file.parent]
    entry = posix(entry)
    # Roboflow writes ../train/images for the folder beside the file
    places = [root / name for name in (entry, entry.removeprefix("../")) for root in roots]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        findings.left_out.add(f"splits of {file.name} that do not exist below {file.parent}", entry)
        return
    if place.is_dir():
        yield from (path for path in walk(place) if path.suffix.lower() in SUFFIXES)
        return
    for line in filter(None, map(str.strip, read_text(place).splitlines())):
        found = [path for root in (place.parent, *roots) if (path := root / posix(line)).is_file()]
        # CVAT writes data/images/train/a.jpg for images/train/a.jpg
        found += [path for root in roots if (path := root / posix(line).partition("/")[2]).is_file()]
        if found:
            yield found[0]
        else:
            findings.left_out.add(f"images that are missing, listed in {place.name}", line)


def _image(
    path: Path,
    labels: Path,
    root: Path,
    split: str | None,
    names: Mapping[int, str],
    options: ImportOptions,
    findings: Findings,
    keypoints: bool = False,
) -> AnnotatedImage:
    """Read the labels of an image. An image without a file of labels shows nothing, as the format says."""
    regions = []
    for number, line in enumerate(read_text(labels).splitlines() if labels.is_file() else (), 1):
        if not line.strip():
            continue
        with shapes.counted(findings, f"{labels.name} line {number}"):
            regions.append(_region(line.split(), names, options, keypoints=keypoints))
    name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
    return AnnotatedImage(name=name, split=split, file=path, regions=regions)


def _labels_of(image: Path) -> Path:
    """Return the file of labels: the last folder ``images`` of the path becomes ``labels``, else beside the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _region(words: Sequence[str], names: Mapping[int, str], options: ImportOptions, *, keypoints: bool) -> Region:
    try:
        number, values = float(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise shapes.BadShape("lines that are no numbers") from error
    label = names.get(int(number)) if number.is_integer() else None
    if label is None:
        raise shapes.BadShape("polygons of unknown classes")
    if keypoints:
        raise shapes.BadShape("keypoints without a mask")
    if len(values) and np.abs(values).max() > _FARTHEST:
        raise shapes.BadShape("coordinates in pixels, expected fractions of the image")
    if len(values) == 4:
        shapes.require_boxes(options)
        x, y, width, height = values
        left, right, top, bottom = x - width / 2, x + width / 2, y - height / 2, y + height / 2
        values = np.array([left, top, right, top, right, bottom, left, bottom])
    points = shapes.points_of(values)
    return Region(label, shapes.normalized_polygon(points), boxed=len(words) > 5 and shapes.is_rectangle(points))
