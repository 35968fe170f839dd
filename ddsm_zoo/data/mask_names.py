"""Masks with other names than their images, for hints: one for each class or object, or one with an unknown end."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ddsm_zoo.data.arrangements import Arrangement, Place
from ddsm_zoo.data.importing.detect import import_command
from ddsm_zoo.data.listing import has_images, images_in, plain_name, subfolders

OBJECT = "object"  # the class of masks that are numbered, or called by a hash

_ROLE = re.compile(r"(?:^(?:masks?|labels?|seg|gt)(?:[-_. ]|$))|(?:[-_. ](?:masks?|labels?|seg|gt)$)")
_NUMBER = re.compile(r"\d+|[0-9a-f-]{16,}|(?:obj|inst|object|instance)s?[-_. ]?\d+")

# Masks of each image by class
Groups = dict[str, dict[str, list[str]]]


class MasksApart(NamedTuple):
    """Masks that hold one class or object each.

    Attributes:
        images: Image files by name.
        masks: Mask files by name.
        groups: Names of masks by image and class.
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    groups: Groups


def classes_apart(images: Iterable[str], masks: Iterable[str]) -> Groups:
    """Group masks whose names are those of their images and of a class, or of a numbered object.

    Args:
        images: Names of the images.
        masks: Names of the masks, which may lie among the images.

    Returns:
        Names of the masks by image and class. Empty unless most of the masks are of this kind, several for an image.
    """
    known: dict[str, str] = {}
    for name in images:
        known.setdefault(_unpadded(name), name)
    known |= {plain_name(name): name for name in images}
    found: Groups = defaultdict(lambda: defaultdict(list))
    others = 0
    for mask in masks:
        image, label = _image_and_class(plain_name(mask), known)
        if image:
            found[known[image]][OBJECT if _NUMBER.fullmatch(label) else label].append(mask)
        else:
            others += known.get(plain_name(mask)) != mask
    masks_of = [sum(map(len, group.values())) for group in found.values()]
    plain = {image: dict(group) for image, group in found.items()}
    return plain if max(masks_of, default=0) > 1 and sum(masks_of) > others else {}


def _image_and_class(mask: str, images: Mapping[str, str]) -> tuple[str, str]:
    """Split the name of a mask into those of its image and class, both empty if it has none."""
    *folders, stem = mask.split("/")
    for place in (folders, *(folders[:index] + folders[index + 1 :] for index in range(len(folders)))):
        for end in range(len(stem) - 1, 0, -1):
            for image in ("/".join((*place, stem[:end])), _unpadded("/".join((*place, stem[:end])))):
                if stem[end] in "-_. " and image in images and (label := _ROLE.sub("", stem[end + 1 :])):
                    return image, label
    if "/".join(folders) in images:
        return "/".join(folders), stem
    for index, folder in enumerate(folders):
        rest = "/".join((*folders[:index], *folders[index + 1 :], stem))
        for image in (rest, _ROLE.sub("", rest)):
            if image in images:
                return image, _ROLE.sub("", folder) or folder
    return "", ""


def _unpadded(name: str) -> str:
    """Return a plain name without the zeros in front of a file name that is a number, as in 00012 for 12."""
    folder, slash, stem = plain_name(name).rpartition("/")
    return f"{folder}{slash}{stem.lstrip('0') or '0' if stem.isdigit() else stem}"


def spelled(groups: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """Return the name of each class as the folder or file of a mask spells it, by its plain name, in order.

    ``groups`` are masks by class, as `classes_apart` returns them for each image.
    """
    examples = {label: masks[0] for group in groups for label, masks in group.items()}
    return {label: _spelling(label, examples[label]) for label in sorted(examples)}


def _spelling(label: str, mask: str) -> str:
    *folders, stem = unicodedata.normalize("NFC", mask).split("/")
    parts = (part[start:end] for part in (*folders, stem) for start, end in _spans(part))
    return next((word for word in (*folders, *parts) if plain_name(word) == label), label)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Iterate over the parts of a text, those near its end first."""
    return ((start, end) for start in reversed(range(len(text))) for end in range(len(text), start, -1))


def by_class(arrangement: Arrangement, images: Path | None = None) -> list[MasksApart]:
    """Return the masks of each class by image, for each place that has masks by class, see `classes_apart`.

    ``images`` is a folder of images elsewhere.
    """
    root = arrangement.root
    places = [arrangement.whole] if has_images(arrangement.whole.images) else [*arrangement.places.values()]
    places = [Place(images or place.images, place.masks) for place in places or [Place(root, root)]]
    found = [_in_place(place) for place in places]
    found = [apart for apart in found if apart.groups] or [_folder_for_each(root)]
    return [apart for apart in found if apart.groups]


def _in_place(place: Place) -> MasksApart:
    """Group the masks of a place, or those of folders such as masks_road beside that of the images."""
    images = images_in(place.images).files
    if has_images(place.masks):
        masks = images_in(place.masks).files
    else:
        beside = place.masks.parent
        folders = [name for name in subfolders(beside) if _ROLE.search(name.casefold())]
        masks = {f"{name}/{mask}": file for name in folders for mask, file in images_in(beside / name).files.items()}
    return MasksApart(images, masks, classes_apart(images, masks))


def _folder_for_each(root: Path) -> MasksApart:
    """Group the masks of folders such as NAME/images/NAME.png with NAME/masks/1.png and more."""
    images: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, Path] = {}
    for name, file in images_in(root).files.items():
        *above, kind, stem = name.split("/") if name.count("/") > 1 else ("", "", "")
        if kind.casefold() in ("images", "image"):
            images["/".join(above)].append(file)
        elif kind.casefold() in ("masks", "mask"):
            masks["/".join((*above, stem))] = file
    alone = {name: files[0] for name, files in images.items() if len(files) == 1}
    return MasksApart(alone, masks, classes_apart(alone, masks))


def class_masks_hint(arrangement: Arrangement) -> str:
    """Return a hint at the import of masks that hold one class or object each, empty without such masks."""
    classes = [*spelled(group for apart in by_class(arrangement) for group in apart.groups.values()).values()]
    if not classes:
        return ""
    named = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    what = "each object has a mask" if classes == [OBJECT] else f"each class has masks of its own ({named})"
    return f"; {what}{import_command('class-masks', arrangement.root)}"


def suffix_hint(images: Sequence[str], masks: Collection[str], said: str | None = None) -> str:
    """Return a hint at ``mask_suffix`` if the masks are called like their images, with one unknown end for all.

    ``said`` is the end that labels.json has.
    """
    masks = set(masks)
    ends = sorted({mask.removeprefix(images[0]) for mask in masks if mask.startswith(images[0])})
    for end in ends:
        if (end or said) and all(f"{image}{end}" in masks or (end and image.endswith(end)) for image in images):
            remedy = f'say "mask_suffix": "{end}" in' if end else 'remove "mask_suffix" from'
            return f"; masks are called NAME{end}: if so, {remedy} labels.json"
    return ""
