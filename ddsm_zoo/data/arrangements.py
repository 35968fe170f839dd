"""Arrangements of ``folder`` data sets: the images and masks of each split as people nest and name them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ddsm_zoo.data.images import SUFFIXES
from ddsm_zoo.data.importing.files import split_of
from ddsm_zoo.data.listing import Named, has_images, images_in, is_hidden, masks_apart, subfolders

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentation", "gt")
_MASK_WORDS = {*_MASKS, "anno", "annot", "seg", "segs"}

# Folders to look into for a data set below: the hint must come at once
_DEPTH, _FOLDERS = 3, 20


class Place(NamedTuple):
    """Folders with images and masks. They are the same where images and masks lie together."""

    images: Path
    masks: Path

    def files(self, suffix: str | None) -> tuple[Named, Named]:
        """Return images and masks by name. ``suffix`` ends the names of masks that lie together with their images."""
        images = images_in(self.images)
        return masks_apart(images, suffix) if self.images == self.masks else (images, images_in(self.masks))


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Places of a data set.

    Attributes:
        root: Folder of the data set.
        places: Place of each split, by the name of the split.
        whole: Place of all splits, for images/SPLIT with masks/SPLIT.
    """

    root: Path
    places: Mapping[str, Place] = field(default_factory=dict)
    whole: Place

    def place(self, split: str) -> Place:
        """Return the place of a split, by its name or that of its folder. It may not exist."""
        named = [place for place in self.places.values() if split in (place.images.name, place.images.parent.name)]
        usual = Place(self.root / "images" / split, self.root / "masks" / split)
        return self.places.get(split) or (named[0] if len(named) == 1 else usual)

    def understood(self, split: str) -> str:
        """Describe the place of a split in words if it is another than images/SPLIT and masks/SPLIT."""
        images, masks = (folder.relative_to(self.root).as_posix() for folder in self.place(split))
        if (images, masks) == (f"images/{split}", f"masks/{split}"):
            return ""
        lists = [file.name for file in sorted(self.root.glob("*.txt")) if split_of(file.stem)]
        unread = f"; {', '.join(lists)} not read: move the images of each split into a folder of its own"
        end = unread if lists and not any(map(split_of, Path(images).parts)) else ""
        if images == masks:
            return f"images and masks read from {'one folder' if images == '.' else images}{end}"
        return f"images read from {images}, masks from {masks}{end}"

    def outside(self) -> tuple[Path, ...]:
        """Return the images beside the folders of the splits."""
        folder = self.whole.images
        if self.whole in self.places.values() or not folder.is_dir():
            return ()
        files = sorted(file for file in folder.iterdir() if file.is_file() and not is_hidden(file.name))
        return tuple(file for file in files if file.suffix.lower() in SUFFIXES)


def arrange(root: Path, suffix: str | None) -> Arrangement:
    """Find the images and masks of a data set.

    The usual arrangement is images/SPLIT with masks/SPLIT. Others are SPLIT/images with SPLIT/masks, SPLIT with
    SPLIT_masks, folders without splits, which are train, and images and masks in one folder, as NAME.jpg with
    NAME_mask.png, or in a folder for each image. Folders have any of the usual names, such as labels for masks, and
    splits too, such as valid for val.

    Args:
        root: Folder of the data set.
        suffix: End of the names of masks, None for the usual ones.
    """
    whole = _pair_of_folders(root, suffix)
    if whole is not None:
        return Arrangement(root=root, places=_below(whole), whole=whole)
    places = {name: _pair_of_folders(root / name, suffix) for name in subfolders(root)}
    found = {name: place for name, place in places.items() if place} or _side_by_side(root) or _together(root, suffix)
    whole = None if found else _pair_by_words(root)
    if whole is not None:
        return Arrangement(root=root, places=_below(whole), whole=whole)
    names = _canonical(found)
    return Arrangement(
        root=root,
        places={names[name]: place for name, place in found.items()},
        whole=Place(root / "images", root / "masks"),
    )


def nested_hint(root: Path) -> str:
    """Return a hint at the folder below that holds the data set, as archives unpack it; empty without one."""
    level = [] if "train" in arrange(root, None).places else [root]
    for _ in range(_DEPTH):
        level = [folder / name for folder in level for name in subfolders(folder)][:_FOLDERS]
        for folder in level:
            if "train" in arrange(folder, None).places:
                return f"; is {folder} meant?"
    return ""


def _pair_of_folders(folder: Path, suffix: str | None) -> Place | None:
    """Return the folders of images and masks in a folder, None if it has no images."""
    images = next(_called(folder, _IMAGES), None)
    if images is None:
        return None
    # labels of other tools are text files, and imported instead
    masks = next((masks for masks in _called(folder, _MASKS) if has_images(masks)), None)
    if masks is None:
        masks = images if masks_apart(images_in(images), suffix)[1].files else folder / "masks"
    return Place(images, masks)


def _pair_by_words(folder: Path) -> Place | None:
    """Return the only folders whose names have a word for images and for masks, such as RGB_images and Labels_v2."""
    words = {name: set(re.split(r"[-_. ]+", name.casefold())) for name in subfolders(folder)}
    masks = [name for name, parts in words.items() if parts & _MASK_WORDS]
    images = [name for name, parts in words.items() if parts & {*_IMAGES} and name not in masks]
    alone = len(images) == len(masks) == 1 and not any(map(split_of, (*words[images[0]], *words[masks[0]])))
    return Place(folder / images[0], folder / masks[0]) if alone and has_images(folder / masks[0]) else None


def _below(whole: Place) -> dict[str, Place]:
    """Return the places of the splits in a place. Files without a split are train, if there are no others."""
    splits = [name for name in subfolders(whole.images) if has_images(whole.images / name)]
    apart = any(split_of(name) and has_images(whole.masks / name) for name in subfolders(whole.masks))
    if not splits and not apart and has_images(whole.images) and has_images(whole.masks):
        return {"train": whole}
    names, masks = _canonical(subfolders(whole.images)), _canonical(subfolders(whole.masks))
    by_split = {split: whole.masks / name for name, split in masks.items()}
    return {split: Place(whole.images / name, by_split.get(split, whole.masks / name)) for name, split in names.items()}


def _side_by_side(root: Path) -> dict[str, Place]:
    """Return the places of folders such as ``train`` or ``train_images`` with ``train_masks``, by split."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for name in subfolders(root):
        words = name.casefold().replace("-", "_").split("_")
        splits, roles = [word for word in words if split_of(word)], [word for word in words if not split_of(word)]
        known = len(splits) == 1 and len(roles) <= 1 and set(roles) <= {*_IMAGES, *_MASKS}
        if known and has_images(root / name):
            side = masks if set(roles) & set(_MASKS) else images
            side.setdefault(splits[0], root / name)
    if images.keys().isdisjoint(masks):
        return {}
    return {split: Place(folder, masks.get(split, root / f"{split}_masks")) for split, folder in images.items()}


def _together(root: Path, suffix: str | None) -> dict[str, Place]:
    """Return the places of folders that hold images together with their masks, by split."""
    folders = {name: root / name for name in subfolders(root) if split_of(name)}
    if not folders and not any(map(split_of, itertools.chain(*(Path(name).parts for name in images_in(root).files)))):
        folders = {"train": root}
    places = {name: Place(folder, folder) for name, folder in folders.items() if has_images(folder)}
    return places if any(place.files(suffix)[1].files for place in places.values()) else {}


def _canonical(names: Iterable[str]) -> dict[str, str]:
    """Return the split that each folder stands for: train or val by another name, unless several could be meant."""
    meant = {name: split_of(name) for name in names}
    counts = Counter(meant.values())
    return {name: split if split in ("train", "val") and counts[split] == 1 else name for name, split in meant.items()}


def _called(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Iterate over the folders in a folder that have one of these names, in their order, whatever their case."""
    found = {name.casefold(): folder / name for name in reversed(subfolders(folder))}
    return (found[name] for name in names if name in found)
