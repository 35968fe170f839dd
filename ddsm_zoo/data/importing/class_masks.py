"""Reader of masks that hold one class or object each: NAME_road.png and NAME_car.png, road/NAME.png, NAME/1.png."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ddsm_zoo.data.arrangements import arrange
from ddsm_zoo.data.importing import shapes
from ddsm_zoo.data.importing.annotations import (
    AnnotatedImage,
    Annotations,
    Bitmap,
    Findings,
    ImportOptions,
    Region,
    read_json,
)
from ddsm_zoo.data.importing.files import split_of
from ddsm_zoo.data.listing import plain_name
from ddsm_zoo.data.mask_files import read_stored
from ddsm_zoo.data.mask_names import OBJECT, by_class, spelled
from ddsm_zoo.data.masks import BLACK, WHITE, DatasetError

# Share of the pixels that must be near black or white, and how near
_CLEAR, _NEAR = 0.9, 32


def read_class_masks(source: Path, options: ImportOptions, findings: Findings) -> Annotations:
    """Read a mask for each class and image. The classes are those of labels.json, if there is one, else sorted.

    Raises DatasetError if no masks are called by an image and a class.
    """
    places = by_class(arrange(source, None), options.images)
    if not places:
        raise DatasetError(
            f"{source} has no masks for each class, expected names such as masks/NAME_road.png and masks/NAME_car.png "
            "for images/NAME.jpg, or masks/road/NAME.png and masks/car/NAME.png, or NAME/masks/1.png for "
            "NAME/images/NAME.png",
            kind="import",
            path=source,
        )
    classes = spelled(group for apart in places for group in apart.groups.values())
    names, called = _names(source / "labels.json", classes)
    images = []
    for files, masks, groups in places:
        used = {mask for group in groups.values() for some in group.values() for mask in some}
        for name, file in files.items():
            if name in used and masks[name] == file:  # images and masks in one folder
                continue
            if name not in groups:
                findings.left_out.add("images without a mask", name)
                continue
            if numbered := groups[name].get(OBJECT):
                what = f"masks that are numbered, all of them objects of {called[OBJECT]}"
                findings.notes.add(what, numbered[0], len(numbered))
            regions = [
                Region(called[label], shapes.whole(partial(_decode, masks[mask])), maybe_empty=True)
                for label in sorted(groups[name], key=lambda label: names.index(called[label]))
                for mask in groups[name][label]
            ]
            split = split_of(*reversed(file.parent.parts[len(source.parts) :]))
            images.append(AnnotatedImage(name=name, split=split, file=file, regions=regions))
        for name in masks.keys() - used - files.keys():
            findings.left_out.add("masks without an image", name)
    # A list of names may begin with the class of all other pixels, which needs no masks
    background = names[0] if names[0] not in called.values() else "background"
    return Annotations(names=names, images=images, background=background)


def _names(label_file: Path, classes: Mapping[str, str]) -> tuple[list[str], Mapping[str, str]]:
    """Return the names of the classes and that of each plain one, as ``labels.json`` has them if it has all.

    Numbered masks are of its only class besides a background. Raises DatasetError if it has more classes than that.
    """
    content = read_json(label_file) if label_file.is_file() else None
    listed = content.get("names") if isinstance(content, dict) else None
    names = list(map(str, listed)) if isinstance(listed, list) else []
    plain = {plain_name(name): name for name in names}
    if names and OBJECT in classes and OBJECT not in plain:
        if len(names) > 2 or len(classes) > 1:
            raise DatasetError(
                f"the masks are numbered and {label_file} has {len(names)} names, expected the name of its class in "
                "that of each mask, such as NAME_road.png",
                kind="import",
                path=label_file,
            )
        plain[OBJECT] = names[-1]
    if classes.keys() <= plain.keys():
        return names, {label: plain[label] for label in classes}
    return [*classes.values()], classes


def _decode(path: Path) -> Bitmap:
    """Read the pixels of a class (H, W): those above half of white, where edges are smooth or compressed."""
    stored = read_stored(path)
    values = stored.values.max(-1) if stored.values.ndim == 3 else stored.values
    if stored.see_through and values.min() == values.max():
        raise shapes.BadShape("masks drawn by their alpha channel, which is not read, expected black and white")
    if stored.shown and set(stored.shown.values()) <= {BLACK, WHITE}:
        white = [index for index, color in stored.shown.items() if color == WHITE]
        return np.isin(values, white)
    if len(present := np.unique(values)) <= 2:
        return values > (present[0] if len(present) == 2 else 0)
    clear = (values <= _NEAR) | (values >= 255 - _NEAR)
    if values.max() > 255 or clear.mean() < _CLEAR:
        raise shapes.BadShape("masks of more than two values, expected black and white")
    return values > 127
