"""Reader of COCO: instances as polygons and as run lengths, in one file or one a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
    read_json,
    readable,
)
from ddsm_zoo.data.importing.files import ImageFinder, annotation_files, posix, split_of_file
from ddsm_zoo.data.masks import DatasetError

CROWD = "areas with iscrowd, which are ignored (CVAT and datumaro mark brush masks so: --crowd class draws them)"


def read_coco(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    """Read COCO's JSON files. Raises DatasetError if there are none, or one has other fields."""
    files = _instance_files(source, findings)
    finder = ImageFinder(source, options.images)
    categories: dict[str, None] = {}
    images: dict[tuple[str, str], AnnotatedImage] = {}
    for file, content in files:
        with readable(file, "COCO"):
            _unquote_ids(content)
            for field in ("categories", "images"):
                _require_own_ids(file, field, content[field])
            names = _categories(file, content, findings)
            categories.update(dict.fromkeys(names.values()))
            regions = _regions(file, content, names, options, findings)
            for entry in content["images"]:
                image = _image(entry, regions.get(entry["id"], ()), finder, file, source)
                key = (image.name, str(image.split))
                if key in images:
                    findings.notes.add("images listed twice, whose annotations are put together", image.name)
                    both = [*images[key].regions, *image.regions]
                    image = AnnotatedImage(**{**vars(image), "regions": both})
                images[key] = image
    findings.left_out.add_files("image files that no annotation file lists", finder.unused())
    return Annotations(names=list(categories), images=list(images.values()))


def _instance_files(source: Path, findings: Findings) -> list[tuple[Path, Mapping[str, Any]]]:
    files = []
    for file in annotation_files(source, "*.json"):
        content = read_json(file)
        if is_coco(content):
            files.append((file, content))
        elif isinstance(content, dict) and "images" in content:
            findings.left_out.add("JSON files without annotations and categories", file.name)
    instances = [(file, content) for file, content in files if file.name.startswith("instances")]
    for file, _ in files:
        if instances and not file.name.startswith("instances"):
            findings.left_out.add("JSON files beside those named instances_...", file.name)
    if not files:
        raise DatasetError(
            f"{source} has no COCO annotations, expected a JSON file with images, annotations and categories",
            kind="import",
            path=source,
        )
    # the classes come in the order of the training split's file
    return sorted(instances or files, key=lambda item: (split_of_file(item[0], source) != "train", item[0]))


def is_coco(content: object) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )


def _unquote_ids(content: Mapping[str, Any]) -> None:
    """Make ids that are numbers in quotes numbers, in place: some tools quote an id in one of its places alone."""
    for entry in (*content["images"], *content["categories"], *content["annotations"]):
        for key in {"id", "image_id", "category_id"} & entry.keys():
            if (
                isinstance(value := entry[key], str)
                and value.isascii()
                and value.isdigit()
                and str(int(value)) == value
            ):
                entry[key] = int(value)


def _require_own_ids(file: Path, field: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise DatasetError if an id stands for two different entries: nobody knows which one an annotation means."""
    seen: dict[Any, str] = {}
    for entry in entries:
        name = str(entry.get("file_name", entry.get("name")))
        if seen.setdefault(entry["id"], name) != name:
            raise DatasetError(
                f"{file} has the id {entry['id']} for two {field}, {seen[entry['id']]} and {name}, expected one each",
                kind="import",
                path=file,
                got=entry["id"],
            )


def _categories(file: Path, content: Mapping[str, Any], findings: Findings) -> dict[Any, str]:
    """Return the class name of each category id, in the order of the ids."""
    entries = sorted(content["categories"], key=lambda entry: entry["id"])
    used = {annotation["category_id"] for annotation in content["annotations"] if "category_id" in annotation}
    parents = {str(entry.get("supercategory")) for entry in entries}
    names: dict[Any, str] = {}
    for entry in entries:
        name = str(entry["name"]).strip()
        # Roboflow adds a category for the project, of which all others are parts
        if entry["id"] not in used and name in parents and entry.get("supercategory") in ("none", None):
            findings.notes.add("categories that are only the parent of the others", f"{name} in {file.name}")
            continue
        if name in names.values():
            findings.notes.add("categories with the name of another, which become one class", f"{name} in {file.name}")
        names[entry["id"]] = name
    return names


def _regions(
    file: Path, content: Mapping[str, Any], names: Mapping[Any, str], options: ImportOptions, findings: Findings
) -> dict[Any, list[Region]]:
    """Return the areas of each image id in the order of the file. Crowds come first, so that objects lie over them."""
    crowds: dict[Any, list[Region]] = defaultdict(list)
    objects: dict[Any, list[Region]] = defaultdict(list)
    known = {entry["id"] for entry in content["images"]}
    for annotation in content["annotations"]:
        where = f"annotation {annotation.get('id')} in {file.name}"
        image, label = annotation["image_id"], names.get(annotation.get("category_id"))
        if image not in known:
            findings.left_out.add("annotations of images that are not listed", where)
        elif "segments_info" in annotation:
            what = "panoptic annotations, whose areas are in PNG files (export instances, with polygons or run lengths)"
            findings.left_out.add(what, str(annotation.get("file_name", file.name)))
        elif label is None:
            findings.left_out.add("annotations of unknown classes", where)
        else:
            with shapes.counted(findings, where):
                paint, boxed = _paint(annotation, options)
                if annotation.get("iscrowd") and not options.crowd:
                    findings.notes.add(CROWD, where)
                    crowds[image].append(Region(None, paint))
                else:
                    objects[image].append(Region(label, paint, boxed=boxed))
    return {image: [*crowds[image], *objects[image]] for image in {*crowds, *objects}}


def _paint(annotation: Mapping[str, Any], options: ImportOptions) -> tuple[Paint, bool]:
    """Return the area of an annotation, and True if it is a single rectangle."""
    stored = annotation.get("segmentation")
    if isinstance(stored, dict):
        return shapes.whole(partial(shapes.coco_rle, stored["counts"], stored["size"])), False
    if stored:
        parts = [shapes.points_of(part) for part in (stored if isinstance(stored[0], list) else [stored])]
        return shapes.polygons(parts), len(parts) == 1 and shapes.is_rectangle(parts[0])
    if annotation.get("bbox") and options.boxes:
        left, top, width, height = annotation["bbox"]
        return shapes.box(left, top, left + width, top + height), False
    raise shapes.BadShape(_without_mask(annotation))


def _without_mask(annotation: Mapping[str, Any]) -> str:
    if annotation.get("keypoints"):
        return "keypoints without a mask"
    return shapes.NO_MASK if annotation.get("bbox") else "annotations without an area"


def _image(
    entry: Mapping[str, Any], regions: Iterable[Region], finder: ImageFinder, file: Path, source: Path
) -> AnnotatedImage:
    name = posix(str(entry["file_name"]))
    split = split_of_file(file, source)
    path = finder.find(name, file.parent, split)
    size = (int(entry.get("height") or 0), int(entry.get("width") or 0))
    return AnnotatedImage(
        name=name,
        split=split or finder.split_of(path),
        file=path,
        size=size if all(size) else None,
        regions=list(regions),
    )
