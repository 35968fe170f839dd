"""Detection of the format of a folder that annotation tools wrote, for errors that name the command to import it."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

_TITLES = {
    "coco": "COCO annotations",
    "labelme": "labelme's annotations",
    "voc": "Pascal VOC masks",
    "cvat": "CVAT's annotations",
    "yolo": "YOLO's labels",
    "roboflow": "Roboflow's semantic masks",
    "ade20k": "ADE20K",
    "class-masks": "a mask for each class",
}
# Formats that are not read, but whose tools write one that is
_OTHERS = {
    "label-studio": "Label Studio's own JSON",
    "via": "VGG Image Annotator's own JSON",
    "supervisely": "Supervisely's own JSON",
    "labelbox": "Labelbox's own JSON",
    "v7": "V7 Darwin's own JSON",
}
_SUFFIXES = (".json", ".ndjson", ".xml", ".yaml", ".yml")
_NAMES = ("_classes.csv", "objectInfo150.txt", "classes.txt")
# Files and folders to look at, and bytes at both ends of each: the answer must come at once, also for a million files
_PATHS = 2000
_DEPTH = 4
_BYTES = 1 << 16


def import_hint(folder: str | Path) -> str:
    """Return the format of a folder with the command to import it, such as ``; it holds COCO annotations (...)``.

    Empty for a folder of none of the formats.
    """
    folder = Path(folder).expanduser()
    found = detect(folder)
    if found is None:
        return ""
    format, file = found
    if format in _OTHERS:
        return f"; it holds {_OTHERS[format]} ({file.name}): export as COCO there, then ddsm-zoo import-data coco"
    if format == "cvat-video":
        return f"; it holds CVAT's annotations of a video ({file.name}): export them as CVAT for images there"
    return f"; it holds {_TITLES[format]} ({file.relative_to(folder).as_posix()}){import_command(format, folder)}"


def import_command(format: str, folder: str | Path) -> str:
    """Return the command that imports a folder, as ``; import it: ddsm-zoo ...``. Empty for an unknown format."""
    if format not in _TITLES:
        return ""
    target = shlex.quote(f"{Path(folder).expanduser().resolve().name}-data")
    return f"; import it: ddsm-zoo import-data {format} {shlex.quote(str(folder))} {target}"


def detect(folder: Path) -> tuple[str, Path] | None:
    """Return the format of a folder, and the file or folder in it that shows it. None for no known format."""
    if not folder.is_dir():
        return None
    paths = list(itertools.islice(_walk(folder), _PATHS))
    for format, names in (
        ("roboflow", ("_classes.csv",)),
        ("ade20k", ("objectInfo150.txt",)),
        ("voc", ("SegmentationClass", "SegmentationClassPNG")),
    ):
        for path in paths:
            if path.name in names:
                return format, path
    # JSON and XML before YAML: Roboflow and others put a data.yaml beside other formats
    for suffixes in ((".json", ".ndjson", ".xml"), (".yaml", ".yml"), (".txt",)):
        for path in paths:
            shown = _format_of(path) if path.suffix.lower() in suffixes else None
            if shown is not None:
                return shown, path
    return next((("yolo", path) for path in paths if path.name == "labels" and _has_polygons(path)), None)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield folders and files that may hold annotations, level by level, without hidden ones."""
    level = [folder]
    for _ in range(_DEPTH):
        below = []
        for parent in level:
            with contextlib.suppress(OSError):
                for path in sorted(path for path in parent.iterdir() if not path.name.startswith(".")):
                    if path.is_dir():
                        below.append(path)
                        yield path
                    elif path.name in _NAMES or path.suffix.lower() in _SUFFIXES:
                        yield path
        level = below


def _format_of(file: Path) -> str | None:
    try:
        text = _ends(file)
    except OSError:
        return None
    text, suffix = text.lstrip(), file.suffix.lower()
    if suffix in (".json", ".ndjson"):
        if '"shapes"' in text and '"imagePath"' in text:
            return "labelme"
        if '"images"' in text and ('"categories"' in text or '"annotations"' in text):
            return "coco"
        if '"shape_attributes"' in text:
            return "via"
        if '"classTitle"' in text or ('"classes"' in text and '"shape"' in text and '"title"' in text):
            return "supervisely"
        if '"data_row"' in text:
            return "labelbox"
        if '"item"' in text and '"annotations"' in text:
            return "v7"
        marks = ('"from_name"', '"brushlabels"', '"polygonlabels"')
        return "label-studio" if text.startswith("[") and any(mark in text for mark in marks) else None
    if suffix == ".xml" and "<annotations" in text:
        if "<track " in text:
            return "cvat-video"
        return "cvat" if "<image " in text else None
    if suffix in (".yaml", ".yml"):
        keys = {line.partition(":")[0] for line in text.splitlines()}
        return "yolo" if "names" in keys and keys & {"train", "val"} else None
    return "yolo" if file.name == "classes.txt" and (file.parent / "labels").is_dir() else None


def _has_polygons(folder: Path) -> bool:
    """Return True if the first text file below a folder has YOLO's lines: a class, then coordinates from 0 to 1."""
    file = next(folder.rglob("*.txt"), None)
    try:
        return file is not None and re.match(r"\d+( [01]?\.?\d+){4,}\s", _ends(file)) is not None
    except OSError:
        return False


def _ends(file: Path) -> str:
    """Return the beginning and the end of a file as text, whatever its encoding."""
    with file.open("rb") as opened:
        content = opened.read(_BYTES)
        if file.stat().st_size > _BYTES:
            opened.seek(max(_BYTES, file.stat().st_size - _BYTES))
            content += opened.read()
    return content.decode("utf-8", "replace").replace("\0", "").lstrip("\ufeff")
