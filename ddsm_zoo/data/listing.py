"""Files of a split: found in whole folders, named, and paired with their masks."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ddsm_zoo.data.images import SUFFIXES, UNREAD_SUFFIXES

# Suffixes of pictures, arrays and videos that Pillow's own list lacks
_OTHER_PICTURES = UNREAD_SUFFIXES | {
    ".avi", ".h5", ".hdf5", ".mat", ".mha", ".mhd", ".mkv", ".mov", ".mp4", ".nii", ".npz", ".nrrd",
}  # fmt: skip
# Words at the start or end of a file name that tell images from masks, not one image from another
_MASK_WORDS = (
    r"masks?|segs?|segm|segmentations?|gt|gtFine|ground_?truth|labels?|lbl|labelIds|gtFine_labelIds"
    r"|labelTrainIds|gtFine_labelTrainIds|ids|anno|annotations?|target|matte|manual\d?"
)
_ROLES = re.compile(
    r"(?:^(?:image|img|mask|label|seg|gt)s?[-_. ])"
    rf"|(?:[-_. ](?:images?|img|rgb|sat|photo|leftImg8bit|m|l|{_MASK_WORDS})$)",
    re.IGNORECASE,
)
# Formats of an image and of a mask that share a name and a folder
_TWINS = ((".jpg", ".png"), (".jpeg", ".png"))
_MASK_END = re.compile(rf"(?:^|[-_. ])(?:{_MASK_WORDS})$", re.IGNORECASE)
# All of a file name where each image has a folder of its own
_ROLE = re.compile(rf"images?|img|rgb|photo|{_MASK_WORDS}", re.IGNORECASE)


class Named(NamedTuple):
    """Files by name, in order.

    Attributes:
        files: File of each name.
        twins: Pairs of files that share a name. Only the first of them is in ``files``.
        left_out: Pictures in formats that are not read.
    """

    files: dict[str, Path]
    twins: tuple[tuple[Path, Path], ...] = ()
    left_out: tuple[Path, ...] = ()


class Pairing(NamedTuple):
    """Masks by the name of their image.

    Attributes:
        masks: Mask of each image that has one, then the masks without an image by their own names.
        guessed: Names of the images whose mask has another name.
        rivals: Pairs of masks that fit one image equally well, which therefore has none.
    """

    masks: dict[str, Path]
    guessed: tuple[str, ...] = ()
    rivals: tuple[tuple[Path, Path], ...] = ()


def is_hidden(name: str) -> bool:
    """Return True for files and folders that systems and notebooks leave behind: ``.x``, ``__MACOSX``, ``@eaDir``."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def is_unread_picture(file: Path) -> bool:
    """Return True for a picture, array or video in a format that is not read."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES or not suffix:
        return False
    if suffix == ".gz":  # NIfTI is packed in it
        return Path(file.stem).suffix.lower() in _OTHER_PICTURES
    Image.init()
    return suffix in _OTHER_PICTURES or suffix in Image.registered_extensions()


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that are not hidden."""
    if not folder.is_dir():
        return []
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name))


def images_in(folder: Path, suffix: str = "") -> Named:
    """Find the images in a folder and below it.

    Args:
        folder: Folder to search. A missing one has no images.
        suffix: End of the files' names that does not belong to the names of the images.

    Returns:
        Files by their path below the folder, without ``suffix`` and format.
    """
    named = by_name((file for file in _walk(folder) if file.suffix.lower() in SUFFIXES), suffix, folder)
    return named._replace(left_out=unread_pictures(folder))


def unread_pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures, arrays and videos in a folder and below it that have formats that are not read."""
    return tuple(sorted(file for file in _walk(folder) if is_unread_picture(file)))


def has_images(folder: Path) -> bool:
    """Return True if there is an image in a folder or below it."""
    return any(file.suffix.lower() in SUFFIXES for file in _walk(folder))


def masks_apart(named: Named, suffix: str | None = None) -> tuple[Named, Named]:
    """Separate the images of a folder from the masks in it, such as a_mask.png beside a.png, or a.png beside a.jpg.

    Args:
        named: Files of the folder.
        suffix: End of the names of masks. None takes any usual word.

    Returns:
        Images and masks. There are no masks unless one belongs to an image.
    """
    if not suffix and named.twins and all((a.suffix.lower(), b.suffix.lower()) in _TWINS for a, b in named.twins):
        twins = dict(named.twins)
        masks = {name: twins[file] for name, file in named.files.items() if file in twins}
        return named._replace(twins=()), Named(masks)
    masks = {
        name: file
        for name, file in named.files.items()
        if (name.endswith(suffix) if suffix else _MASK_END.search(name.rpartition("/")[2]))
    }
    images = {name: file for name, file in named.files.items() if name not in masks}
    bases = {name.removesuffix(suffix): file for name, file in masks.items()} if suffix else masks
    if images.keys().isdisjoint(pair_masks(images, bases).masks):
        return named, Named({})
    return named._replace(files=images), Named(masks)


def by_name(files: Iterable[Path], suffix: str = "", root: Path | None = None) -> Named:
    """Index files by stem without ``suffix``, or by their path below ``root`` without it. Hidden files are left out."""
    found: dict[str, Path] = {}
    twins = []
    for file in sorted(files):
        if is_hidden(file.name):
            continue
        name = (file if root is None else file.relative_to(root)).with_name(file.stem.removesuffix(suffix) or file.stem)
        key = name.name if root is None else name.as_posix()
        if key in found:
            twins.append((found[key], file))
        else:
            found[key] = file
    return Named(found, tuple(twins))


def pair_masks(images: Iterable[str], masks: Mapping[str, Path]) -> Pairing:
    """Find the mask of each image.

    Equal names come first, then those that differ in case or in the bytes of their accents, as systems store these
    differently, then names without words such as ``_mask``, ``_L`` or ``img_``, then names without the
    folders where one side has none. A later rule takes only what earlier ones left, and only where it leaves no
    choice.

    Args:
        images: Names of the images.
        masks: Mask files by their names.
    """
    images = list(images)
    partners = {name: name for name in images if name in masks}
    rivals: dict[str, list[str]] = {}
    for key in (plain_name, _core, _stem, lambda name: _core(_stem(name))):
        taken = set(partners.values())
        lone = _grouped((name for name in images if name not in partners), key)
        free = _grouped((name for name in masks if name not in taken), key)
        for shared in lone.keys() & free.keys():
            name, candidates = lone[shared][0], free[shared]
            if len(lone[shared]) > 1 or not all(_folders_agree(name, candidate) for candidate in candidates):
                continue
            if len(candidates) == 1:
                partners[name] = candidates[0]
            else:
                rivals.setdefault(name, candidates)
    taken, known = set(partners.values()), set(images)
    unused = {name: file for name, file in masks.items() if name not in taken and name not in known}
    return Pairing(
        {name: masks[partner] for name, partner in partners.items()} | unused,
        tuple(name for name in images if partners.get(name, name) != name),
        tuple((masks[some[0]], masks[some[1]]) for name, some in sorted(rivals.items()) if name not in partners),
    )


def _folders_agree(first: str, second: str) -> bool:
    """Return True for names of one folder, and if one of them has none."""
    folders = plain_name(first).rpartition("/")[0], plain_name(second).rpartition("/")[0]
    return folders[0] == folders[1] or "" in folders


def plain_name(name: str) -> str:
    """Return a name without differences of case, and of composed and decomposed accents."""
    return unicodedata.normalize("NFC", name.casefold())


def _core(name: str) -> str:
    """Return a name without the words at its ends that say what the file is."""
    folder, _, stem = plain_name(name).rpartition("/")
    return f"{folder}/{'' if folder and _ROLE.fullmatch(stem) else _ROLES.sub('', stem) or stem}"


def _stem(name: str) -> str:
    return plain_name(name).rpartition("/")[2]


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups


def _walk(folder: Path) -> Iterator[Path]:
    """Iterate over the files in a folder and below it that are not hidden. Links are followed, each folder once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(parent, name) for name in files if not is_hidden(name))
