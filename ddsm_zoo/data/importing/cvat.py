"""Reader of "CVAT for images": XML files, and the images in a folder beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ddsm_zoo.data.importing import shapes
from ddsm_zoo.data.importing.annotations import (
    AnnotatedImage,
    Annotations,
    Findings,
    ImportOptions,
    Paint,
    Region,
    readable,
)
from ddsm_zoo.data.importing.files import ImageFinder, annotation_files, posix, split_of, split_of_file
from ddsm_zoo.data.masks import DatasetError
from ddsm_zoo.errors import PackageError
from ddsm_zoo.labels import Color


def read_cvat(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    """Read CVAT's XML files. Raises DatasetError if there are none, or one has tracks of a video."""
    parse = _parser()
    finder = ImageFinder(source, options.images)
    names: dict[str, None] = {}
    colors: dict[str, Color] = {}
    images: list[AnnotatedImage] = []
    for file in annotation_files(source, "*.xml"):
        with readable(file, "XML"):
            root = parse(file).getroot()
        if root.tag != "annotations":
            findings.left_out.add("XML files that are not CVAT's", file.name)
            continue
        if root.find("track") is not None:
            raise DatasetError(
                f'{file} is "CVAT for video", expected "CVAT for images": export the task as that',
                kind="import",
                path=file,
            )
        with readable(file, "CVAT for images"):
            for label in root.iterfind("meta//labels/label"):
                name = label.findtext("name", "").strip()
                if label.findtext("parent"):  # a point of a skeleton
                    continue
                names[name] = None
                if color := re.fullmatch(r"#(..)(..)(..)", label.findtext("color", "")):
                    red, green, blue = (int(part, 16) for part in color.groups())
                    colors[name] = (red, green, blue)
            images += [
                _image(entry, names, finder, file, source, options, findings) for entry in root.iterfind("image")
            ]
    if not images:
        raise DatasetError(
            f"{source} has no annotations of CVAT, expected XML files with images, such as annotations.xml",
            kind="import",
            path=source,
        )
    findings.left_out.add_files("image files that no annotation file lists", finder.unused())
    return Annotations(names=list(names), images=images, colors=colors)


def _image(
    entry: Any,
    names: Iterable[str],
    finder: ImageFinder,
    file: Path,
    source: Path,
    options: ImportOptions,
    findings: Findings,
) -> AnnotatedImage:
    name = posix(entry.attrib["name"])
    split = split_of(entry.get("subset", "")) or split_of_file(file, source)
    path = finder.find(name, file.parent, split)
    layers: list[tuple[int, Region]] = []
    for shape in entry:
        label = shape.get("label", "").strip()
        with shapes.counted(findings, f"{label} in {name}"):
            if shape.get("outside") == "1":
                raise shapes.BadShape("shapes outside of the image")
            paint = _paint(shape, options)
            if label not in names:
                raise shapes.BadShape("shapes of unknown classes")
            layers.append((int(shape.get("z_order", 0)), Region(label, paint)))
    layers.sort(key=lambda layer: layer[0])  # stable: the order of the file within a layer
    return AnnotatedImage(
        name=name,
        split=split or finder.split_of(path),
        file=path,
        size=(int(entry.attrib["height"]), int(entry.attrib["width"])),
        regions=[region for _, region in layers],
    )


def _paint(shape: Any, options: ImportOptions) -> Paint:
    def numbers(*keys: str) -> list[float]:
        return [float(shape.attrib[key]) for key in keys]

    degrees = float(shape.get("rotation", 0))
    if shape.tag == "polygon":
        return shapes.polygons([shapes.points_of(re.split("[,;]", shape.attrib["points"]))])
    if shape.tag == "ellipse":
        x, y, across, down = numbers("cx", "cy", "rx", "ry")
        return shapes.ellipse((x, y), (across, down), degrees)
    if shape.tag == "mask":
        at_x, at_y, width, height = map(int, numbers("left", "top", "width", "height"))
        counts = [int(part) for part in shape.attrib["rle"].split(",")]
        return shapes.bitmap(partial(shapes.run_lengths, counts, height, width), at_x, at_y)
    if shape.tag == "box":
        shapes.require_boxes(options)
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        return shapes.box(left, top, right, bottom, degrees)
    kinds = {"points": "points", "polyline": "lines", "tag": "tags", "skeleton": "skeletons (keypoints)"}
    raise shapes.BadShape(kinds.get(shape.tag, f"{shape.tag}s"))


def _parser() -> Any:
    """Return a parser that refuses entities, which can fill the memory or name other files."""
    try:
        from defusedxml.ElementTree import parse
    except ModuleNotFoundError as error:
        raise PackageError.needed("CVAT's XML needs", "defusedxml", "formats") from error
    return parse
