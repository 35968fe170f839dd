"""Masks with other names than their images, for hints: one for each class, or one with an unknown end."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ddsm_zoo.data.arrangements import Arrangement, Place
from ddsm_zoo.data.importing.detect import import_command
from ddsm_zoo.data.listing import has_images, images_in, plain_name

_ROLE = re.compile(r"(?:^(?:masks?|labels?|seg|gt)(?:[-_. ]|$))|(?:[-_. ](?:masks?|labels?|seg|gt)$)")


def classes_apart(images: Iterable[str], masks: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the mask of each class by image, for masks whose names are those of their images and of a class.

    Args:
        images: Names of the images.
        masks: Names of the masks, which may lie among the images.

    Returns:
        Name of the mask by image and class. Empty unless most of the masks are of this kind, and of several classes.
    """
    known = {plain_name(name): name for name in images}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    others = 0
    for mask in masks:
        image, label = _image_and_class(plain_name(mask), known)
        if image and not label.isdigit():  # numbers count objects
            found[known[image]][label] = mask
        else:
            others += known.get(plain_name(mask)) != mask
    classes = {label for group in found.values() for label in group}
    several = any(len(group) > 1 for group in found.values())
    return dict(found) if several and len(classes) > 1 and sum(map(len, found.values())) > others else {}


def _image_and_class(mask: str, images: Mapping[str, str]) -> tuple[str, str]:
    """Split the name of a mask into those of its image and class, both empty if it has none."""
    *folders, stem = mask.split("/")
    if "/".join(folders) in images:
        return "/".join(folders), stem
    for index, folder in enumerate(folders):
        rest = "/".join((*folders[:index], *folders[index + 1 :], stem))
        for image in (rest, _ROLE.sub("", rest)):
            if image in images:
                return image, folder
    for end in range(len(stem) - 1, 0, -1):
        image = "/".join((*folders, stem[:end]))
        if stem[end] in "-_. " and image in images and (label := _ROLE.sub("", stem[end + 1 :])):
            return image, label
    return "", ""


def spelled(groups: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the name of each class as the folder or file of a mask spells it, by its plain name, in order.

    ``groups`` are masks by class, as `classes_apart` returns them for each image.
    """
    examples = {label: mask for group in groups for label, mask in group.items()}
    return {label: _spelling(label, examples[label]) for label in sorted(examples)}


def _spelling(label: str, mask: str) -> str:
    *folders, stem = unicodedata.normalize("NFC", mask).split("/")
    ends = (stem[start:end] for start in reversed(range(len(stem))) for end in range(len(stem), start, -1))
    return next((word for word in (*folders, *ends) if plain_name(word) == label), label)


def by_class(arrangement: Arrangement, images: Path | None = None) -> list[tuple[Place, dict[str, dict[str, str]]]]:
    """Return the masks of each class by image, for each place that has masks by class, see `classes_apart`.

    ``images`` is a folder of images elsewhere.
    """
    root = arrangement.root
    places = [arrangement.whole] if has_images(arrangement.whole.images) else [*arrangement.places.values()]
    places = [Place(images or place.images, place.masks) for place in places or [Place(root, root)]]
    found = [(place, classes_apart(*(images_in(folder).files for folder in place))) for place in places]
    return [(place, groups) for place, groups in found if groups]


def class_masks_hint(arrangement: Arrangement) -> str:
    """Return a hint at the import of masks that hold one class each, empty without such masks."""
    classes = [*spelled(group for _, groups in by_class(arrangement) for group in groups.values()).values()]
    if not classes:
        return ""
    named = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"; each class has masks of its own ({named}){import_command('class-masks', arrangement.root)}"


def suffix_hint(images: Sequence[str], masks: Collection[str]) -> str:
    """Return a hint at ``mask_suffix`` if the masks are called like their images, with one unknown end for all."""
    masks = set(masks)
    ends = sorted({mask.removeprefix(images[0]) for mask in masks if mask.startswith(images[0])} - {""})
    for end in ends:
        if all(f"{image}{end}" in masks or image.endswith(end) for image in images):
            return f'; masks are called NAME{end}: if so, say "mask_suffix": "{end}" in labels.json'
    return ""
