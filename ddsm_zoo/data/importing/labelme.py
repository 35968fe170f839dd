"""Reader of labelme: a JSON file for each image."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddsm_zoo.data.images import FORMATS, SUFFIXES
from ddsm_zoo.data.importing import shapes
from ddsm_zoo.data.importing.annotations import (
    AnnotatedImage,
    Annotations,
    Bitmap,
    EmbeddedImage,
    Findings,
    ImportOptions,
    Paint,
    Region,
    read_json,
    read_text,
    readable,
)
from ddsm_zoo.data.importing.files import ImageFinder, annotation_files, posix, split_of
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.errors import ArgumentError

_IGNORED = "__ignore__"


def read_labelme(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    """Read labelme's JSON files. The classes are those of labels.txt, if there is one. Raises DatasetError."""
    finder = ImageFinder(source, options.images)
    listed = finder.root / "labels.txt"
    known = [line.strip() for line in read_text(listed).splitlines() if line.strip()] if listed.is_file() else None
    images: list[AnnotatedImage] = []
    for file in annotation_files(source, "*.json"):
        content = read_json(file)
        if not is_labelme(content):
            findings.left_out.add("JSON files that are not labelme's", file.name)
            continue
        with readable(file, "labelme"):
            images.append(_image(file, content, finder, known, options, findings))
    if not images:
        raise DatasetError(
            f"{source} has no annotations of labelme, expected JSON files with shapes and imagePath",
            kind="import",
            path=source,
        )
    findings.left_out.add_files("images without a JSON file, as not annotated", finder.unused())
    found = sorted({str(region.label) for image in images for region in image.regions})
    names = [name for name in (known or found) if name != _IGNORED]
    return Annotations(names=names, images=images, ignored=frozenset([_IGNORED]))


def is_labelme(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _image(
    file: Path,
    content: Mapping[str, Any],
    finder: ImageFinder,
    known: list[str] | None,
    options: ImportOptions,
    findings: Findings,
) -> AnnotatedImage:
    regions = []
    for shape in content["shapes"]:
        label = "" if shape["label"] is None else str(shape["label"]).strip()
        if not label:
            findings.left_out.add("shapes without a class", file.name)
            continue
        if known is not None and label not in known:
            findings.left_out.add("shapes of classes that labels.txt lacks", f"{label} in {file.name}")
            continue
        with shapes.counted(findings, file.name):
            regions.append(Region(label, _paint(shape, options)))
    path = _find_image(file, str(content["imagePath"]), finder, findings)
    embedded = content.get("imageData")
    size = (int(content.get("imageHeight") or 0), int(content.get("imageWidth") or 0))
    folders = file.parent.relative_to(finder.root).parts
    name = path.name if path else posix(str(content["imagePath"])).rpartition("/")[2]
    return AnnotatedImage(
        name="/".join((*folders, name)),
        split=split_of(*reversed(folders)) or finder.split_of(path),
        file=path or (_embedded(file, str(embedded)) if embedded else None),
        size=size if all(size) else None,
        regions=regions,
    )


def _find_image(file: Path, name: str, finder: ImageFinder, findings: Findings) -> Path | None:
    """Find the image by the name in the file, or else by the name of the file, which may have been moved with it.

    If the named image has a JSON file of its own, the file was copied or renamed with its image, as long as it has one.
    """
    beside = (path for suffix in sorted(SUFFIXES) if (path := file.with_suffix(suffix)).is_file())
    own = next(beside, None)
    found = finder.find(name, file.parent)
    if own is not None and found is not None and found.stem != own.stem and found.with_suffix(".json").is_file():
        what = "files whose imagePath is the image of another file, taken for the image of their own name"
        findings.notes.add(what, f"{file.name} ({found.name})")
        found = None
    return found or (finder.find(own.name, file.parent) if own else None)


def _embedded(file: Path, data: str) -> EmbeddedImage:
    """Describe the image inside a JSON file, without keeping it. Raises ValueError if it is none."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(data)), formats=FORMATS) as image:
            suffix = f".{str(image.format).lower()}"
    except OSError as error:
        raise ArgumentError(f"imageData is no image: {error}") from error
    return EmbeddedImage(suffix=suffix, read=lambda: base64.b64decode(read_json(file)["imageData"]))


def _decode_mask(data: str) -> Bitmap:
    try:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)), formats=("PNG",))).astype(bool)
    except (OSError, ValueError, SyntaxError) as error:
        raise shapes.BadShape("masks that are no PNG image") from error


def _paint(shape: Mapping[str, Any], options: ImportOptions) -> Paint:
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
    if kind in ("polygon", "oriented_rectangle", "quadrilateral", "rotation"):
        return shapes.polygons([shapes.points_of(points)])
    if kind == "circle":
        if len(points) != 2:
            raise shapes.BadShape("circles without a center and a point on them")
        (x, y), on_circle = points
        radius = math.dist((x, y), on_circle)
        return shapes.ellipse((x, y), (radius, radius))
    if kind == "mask":
        left, top = points.min(0).astype(int).tolist()
        return shapes.bitmap(partial(_decode_mask, str(shape["mask"])), left, top)
    if kind == "rectangle":
        shapes.require_boxes(options)
        return shapes.box(*points.min(0), *points.max(0))
    raise shapes.BadShape({"point": "points", "points": "points"}.get(kind, "lines" if "line" in kind else f"{kind}s"))
