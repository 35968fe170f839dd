"""Files of an export: the images that annotations name, and the split that a folder or file name stands for."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from ddsm_zoo.data.images import SUFFIXES
from ddsm_zoo.data.masks import DatasetError

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def existing_source(source: Path) -> Path:
    """Return ``source`` with ~ expanded. Raises DatasetError if nothing is there, or a ZIP archive."""
    source = source.expanduser()
    if not source.exists():
        raise DatasetError(f"{source} does not exist, expected the folder of an export", kind="import", path=source)
    if source.is_file() and source.suffix.lower() in (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar"):
        raise DatasetError(
            f"{source} is an archive, expected a folder: unpack it and name the folder", kind="import", path=source
        )
    return source


def annotation_files(source: Path, pattern: str) -> list[Path]:
    """List the files of this pattern in a folder and all below it, or the file itself."""
    if source.is_file():
        return [source]
    return [file for file in walk(source) if file.match(pattern)]


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it in order, except hidden ones."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def split_of(*words: str) -> str | None:
    """Return the split that one of these folder names stands for, such as train2017 or valid. The first one counts."""
    for word in words:
        if found := re.fullmatch(r"([a-z]+)[_-]?\d*", word.lower()):
            split = _SPLITS.get(found[1])
            if split is not None:
                return split
    return None


def split_of_file(file: Path, source: Path) -> str | None:
    """Return the split of an annotation file: ``instances_val2017.json``, or the folders between it and the source."""
    folders = file.parent.relative_to(source).parts if file.parent.is_relative_to(source) else ()
    return split_of(*re.split(r"[^a-z]+", file.stem.lower())) or split_of(*reversed(folders))


def posix(name: str) -> str:
    """Convert a path as any system writes it, such as ``..\\images\\a.jpg``, to forward slashes."""
    return PureWindowsPath(name).as_posix() if "\\" in name else name


class ImageFinder:
    """Search for the images that annotations name, in the source and in a folder that the user named."""

    def __init__(self, source: Path, images: Path | None) -> None:
        if images is not None and not images.is_dir():
            raise DatasetError(f"the folder of the images {images} does not exist", kind="import")
        self.root = source.parent if source.is_file() else source
        self.roots = [root for root in (images, self.root) if root is not None]
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        self.used: set[Path] = set()
        for root in self.roots:
            for file in walk(root):
                if file.suffix.lower() in SUFFIXES and file not in self.by_name[file.name.lower()]:
                    self.by_name[file.name.lower()].append(file)

    def find(self, name: str, folder: Path, split: str | None = None) -> Path | None:
        """Find an image.

        Args:
            name: Path as the annotations write it.
            folder: Folder of the annotation file.
            split: Split of the image, which decides between equal names in different folders.

        Returns:
            The file, None if there is none, or several and nothing to choose by.
        """
        name = posix(name)
        places = (*self.roots[:-1], folder, folder / "images", self.root)
        found = next((path for place in places if (path := place / name).is_file()), None)
        if found is None:
            found = self._closest(PurePosixPath(name), split)
        if found is not None:
            self.used.add(found)
        return found

    def _closest(self, name: PurePosixPath, split: str | None) -> Path | None:
        """Return the file whose last folders are those of ``name`` for longest, None if several are equally close."""
        files = self.by_name.get(name.name.lower(), [])
        in_split = [file for file in files if self.split_of(file) == split]
        ranked = sorted((_common_end(file.parts, name.parts), file) for file in in_split or files)
        if not ranked or (len(ranked) > 1 and ranked[-1][0] == ranked[-2][0]):
            return None
        return ranked[-1][1]

    def split_of(self, file: Path | None) -> str | None:
        """Return the split that the folders of an image name, None for a missing image."""
        if file is None:
            return None
        root = next((root for root in self.roots if file.is_relative_to(root)), None)
        return None if root is None else split_of(*reversed(file.parent.relative_to(root).parts))

    def unused(self) -> list[Path]:
        """List the images that no annotation named."""
        used = {path.resolve() for path in self.used}
        return [file for files in self.by_name.values() for file in files if file.resolve() not in used]


def _common_end(one: Iterable[str], other: Iterable[str]) -> int:
    pairs = zip(reversed(tuple(one)), reversed(tuple(other)), strict=False)
    return next((index for index, (left, right) in enumerate(pairs) if left != right), 10**6)
