"""Reader of masks that hold one class each: NAME_road.png and NAME_car.png, or road/NAME.png and car/NAME.png."""

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
from ddsm_zoo.data.listing import images_in, plain_name
from ddsm_zoo.data.mask_files import read_stored
from ddsm_zoo.data.mask_names import by_class, spelled
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
            "for images/NAME.jpg, or masks/road/NAME.png and masks/car/NAME.png",
            kind="import",
            path=source,
        )
    classes = spelled(group for _, groups in places for group in groups.values())
    names = _names(source / "labels.json", classes)
    images = []
    for place, groups in places:
        files, masks = (images_in(folder).files for folder in place)
        used = {mask for group in groups.values() for mask in group.values()}
        for name, file in files.items():
            if place.images == place.masks and name in used:
                continue
            if name not in groups:
                findings.left_out.add("images without a mask", name)
                continue
            regions = [
                Region(label, shapes.whole(partial(_decode, masks[groups[name][plain_name(label)]])), maybe_empty=True)
                for label in names
                if plain_name(label) in groups[name]
            ]
            split = split_of(*reversed(file.parent.parts[len(source.parts) :]))
            images.append(AnnotatedImage(name=name, split=split, file=file, regions=regions))
        for name in masks.keys() - used - files.keys():
            findings.left_out.add("masks without an image", name)
    # A list of names may begin with the class of all other pixels, which needs no masks
    background = names[0] if plain_name(names[0]) not in classes else "background"
    return Annotations(names=names, images=images, background=background)


def _names(label_file: Path, classes: Mapping[str, str]) -> list[str]:
    """Return the names of the classes, spelled and sorted as in ``labels.json`` if it has all of them."""
    content = read_json(label_file) if label_file.is_file() else None
    listed = content.get("names") if isinstance(content, dict) else None
    if isinstance(listed, list) and classes.keys() <= {plain_name(str(name)) for name in listed}:
        return list(map(str, listed))
    return [*classes.values()]


def _decode(path: Path) -> Bitmap:
    """Read the pixels of a class (H, W): those above half of white, where edges are smooth or compressed."""
    stored = read_stored(path)
    values = stored.values.max(-1) if stored.values.ndim == 3 else stored.values
    if stored.see_through and values.min() == values.max():
        raise shapes.BadShape("masks drawn by their alpha channel, which is not read, expected black and white")
    if stored.shown and set(stored.shown.values()) <= {BLACK, WHITE}:
        white = [index for index, color in stored.shown.items() if color == WHITE]
        return np.isin(values, white)
    if len(np.unique(values)) <= 2:
        return values > 0
    clear = (values <= _NEAR) | (values >= 255 - _NEAR)
    if values.max() > 255 or clear.mean() < _CLEAR:
        raise shapes.BadShape("masks of more than two values, expected black and white")
    return values > 127
