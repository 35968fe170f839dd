"""Layouts of data sets on disk: the files of each split, and missing ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ddsm_zoo.config import from_dict
from ddsm_zoo.data.images import SUFFIXES
from ddsm_zoo.data.importing.detect import import_hint
from ddsm_zoo.data.masks import (
    CAMVID_COLORS,
    CAMVID_IDS,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_TRAIN_IDS,
    DatasetError,
    MaskDecoder,
    identity,
)
from ddsm_zoo.data.pairs import Pair, SegmentationDataset, Transform, UnlabeledImages
from ddsm_zoo.data.problems import SHOWN, Problem
from ddsm_zoo.labels import CAMVID, CITYSCAPES, Color, LabelSpace

# Others, such as the test split of a benchmark, may come without masks.
LABELED_SPLITS = ("train", "val")


class SplitFiles(NamedTuple):
    """Files of one split.

    Attributes:
        images: File of each image, by the image's name.
        masks: File of each mask, by the name of its image.
        expected: Expected place of the mask of NAME, for errors: ``masks/train/NAME.png``.
        decode: Decoder from stored values to class ids.
        twins: Pairs of files that claim one name.
        absent: Names in the list file ``listed`` that have no image.
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    expected: str
    decode: MaskDecoder
    twins: tuple[tuple[Path, Path], ...] = ()
    absent: tuple[str, ...] = ()
    listed: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Data set of files on disk.

    Attributes:
        root: Folder of the data set.
        labels: Classes of the data set.
        find: Function ``find(split)`` that returns the files of a split, and None or no images for a missing split.
        shape: Expected places of the files, for errors: ``images/SPLIT/ and masks/SPLIT/``.
        candidates: Names that may be splits, besides train and val.
        colored: For errors, the place of masks with RGB colours, or the setting that makes them readable.
    """

    root: Path
    labels: LabelSpace
    find: Callable[[str], SplitFiles | None]
    shape: str
    candidates: Iterable[str] = ()
    colored: str = ""

    def splits(self) -> list[str]:
        """Return the splits that have images, those with labels first."""
        found = {name: self.find(name) for name in (*LABELED_SPLITS, *sorted(set(self.candidates)))}
        return [name for name, files in found.items() if files is not None and files.images]

    def files(self, split: str) -> SplitFiles:
        """Return the files of the split. Raises DatasetError if it has no images, or its masks have other classes."""
        files = self.find(split)
        if files is not None and (files.images or files.absent):
            files.decode.require_classes(self.labels)
            return files
        present = self.splits()
        instead = f"it has the splits {', '.join(present)}" if present else f"expected {self.shape}"
        raise DatasetError(f"{self.root} has no images for the split {split!r}, {instead}")

    def open(self, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
        """Open the image and mask pairs of the split.

        Args:
            split: Name of the split.
            transform: Transform of each image and mask, None for none.
            seed: Seed of the transform's randomness.

        Raises:
            DatasetError: Images or masks are missing.
        """
        files = self.files(split)
        for problem in self.problems(split, files):
            # pairs need masks, even if missing ones are only a warning elsewhere
            if problem.severity == "error" or problem.kind == "missing-mask":
                raise DatasetError(f"{self.root} cannot be used: {problem}")
        pairs = [Pair(files.images[name], files.masks[name], name) for name in sorted(files.images)]
        return SegmentationDataset(pairs, self.labels, files.decode, transform, seed)

    def open_unlabeled(self, split: str, transform: Transform | None = None) -> UnlabeledImages:
        """Open the images of the split without their masks. Raises DatasetError if it has none."""
        files = self.files(split)
        return UnlabeledImages(files.images, self.labels, files.decode, transform)

    def problems(self, split: str, files: SplitFiles) -> list[Problem]:
        """List the problems of a split that the names of its files show."""
        images, masks = files.images, files.masks
        unlabeled = [name for name in images if name not in masks]
        unused = [name for name in masks if name not in images]
        strict = bool(masks) or split in LABELED_SPLITS
        found = [
            Problem(
                kind="same-name",
                split=split,
                what="the same name as another file for",
                noun="files",
                advice="expected one file for each name",
                count=len(files.twins),
                total=len(files.twins) + len(images) + len(masks),
                examples=tuple(" and ".join(self.below_root(*pair)) for pair in files.twins[:SHOWN]),
            ),
            Problem(
                kind="missing-image",
                split=split,
                what="no image for",
                noun=f"names in {files.listed.name}" if files.listed else "names",
                count=len(files.absent),
                total=len(files.absent) + len(images),
                examples=tuple(map(repr, files.absent[:SHOWN])),
            ),
            Problem(
                kind="missing-mask",
                severity="error" if strict else "warning",
                split=split,
                what="no mask for",
                noun="images",
                advice=f"expected {files.expected}",
                count=len(unlabeled),
                total=len(images),
                examples=self.below_root(*(images[name] for name in unlabeled[:SHOWN])),
            ),
            Problem(
                kind="unused-mask",
                severity="warning",
                split=split,
                what="no image for",
                advice="which are left out",
                count=len(unused),
                total=len(masks),
                examples=self.below_root(*(masks[name] for name in unused[:SHOWN])),
            ),
        ]
        return [problem for problem in found if problem.count]

    def below_root(self, *files: Path) -> tuple[str, ...]:
        """Return paths relative to the root, and absolute ones for files elsewhere."""
        return tuple(
            (file.relative_to(self.root) if file.is_relative_to(self.root) else file).as_posix() for file in files
        )


def existing_folder(root: str | Path) -> Path:
    """Return the root of a data set, with ~ expanded. Raises DatasetError if the folder does not exist."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DatasetError(f"data set folder {folder} does not exist, expected the root of the data set")
    return folder


def cityscapes_layout(root: str | Path) -> Layout:
    root = existing_folder(root)

    def find(split: str) -> SplitFiles:
        images = _by_name(root.glob(f"leftImg8bit/{split}/*/*_leftImg8bit.png"), "_leftImg8bit")
        masks = _by_name(root.glob(f"gtFine/{split}/*/*_gtFine_labelIds.png"), "_gtFine_labelIds")
        decode = CITYSCAPES_LABEL_IDS
        if not masks.files:
            masks = _by_name(root.glob(f"gtFine/{split}/*/*_gtFine_labelTrainIds.png"), "_gtFine_labelTrainIds")
            decode = CITYSCAPES_TRAIN_IDS
        return _source(images, masks, f"gtFine/{split}/CITY/NAME_gtFine_labelIds.png", decode)

    return Layout(
        root=root,
        labels=CITYSCAPES,
        find=find,
        candidates=_subfolders(root / "leftImg8bit"),
        shape="leftImg8bit/SPLIT/CITY/ and gtFine/",
        colored="the ids are in NAME_gtFine_labelIds.png",
    )


def camvid_layout(root: str | Path) -> Layout:
    root = existing_folder(root)
    stills = _first_folder(root, "701_StillsRaw_full", "images")
    labeled = _first_folder(root, "LabeledApproved_full", "labels")

    def find(split: str) -> SplitFiles | None:
        annotated, colored, listed = root / f"{split}annot", root / f"{split}_labels", root / f"{split}.txt"
        if annotated.is_dir():
            return _source(_images_in(root / split), _images_in(annotated), f"{annotated.name}/NAME.png", CAMVID_IDS)
        if colored.is_dir():
            masks = _images_in(colored, "_L")
            return _source(_images_in(root / split), masks, f"{colored.name}/NAME_L.png", CAMVID_COLORS)
        if stills and labeled and listed.is_file():
            names = _names_in(listed)
            images, masks = (_only(names, _images_in(folder, end)) for folder, end in ((stills, ""), (labeled, "_L")))
            source = _source(images, masks, f"{labeled.name}/NAME_L.png", CAMVID_COLORS)
            return source._replace(absent=tuple(name for name in names if name not in images.files), listed=listed)
        return None

    return Layout(
        root=root,
        labels=CAMVID,
        find=find,
        candidates=[*_subfolders(root), *(file.stem for file in root.glob("*.txt"))],
        shape="SPLIT/ with SPLITannot/ or SPLIT_labels/, or images/ and labels/ with SPLIT.txt",
        colored="CamVid's colours belong in SPLIT_labels/NAME_L.png",
    )


def folder_layout(root: str | Path) -> Layout:
    root = existing_folder(root)
    labels, decode = _read_labels(root / "labels.json")

    def find(split: str) -> SplitFiles:
        images, masks = _images_in(root / "images" / split), _images_in(root / "masks" / split)
        return _source(images, masks, f"masks/{split}/NAME.png", decode)

    return Layout(
        root=root,
        labels=labels,
        find=find,
        candidates=_subfolders(root / "images"),
        shape="images/SPLIT/ and masks/SPLIT/",
        colored='labels.json reads colours once it has a "palette", the colour of each name',
    )


@dataclass(frozen=True, kw_only=True)
class _LabelFile:
    names: tuple[str, ...]
    palette: tuple[Color, ...] | None = None
    ignore_index: int = 255


def _read_labels(path: Path) -> tuple[LabelSpace, MaskDecoder]:
    if not path.is_file():
        hint = import_hint(path.parent)
        raise DatasetError(f'{path} is missing, expected a file like {{"names": ["road", "car"]}}{hint}')
    try:
        given = from_dict(_LabelFile, json.loads(path.read_text(encoding="utf-8")), "labels")
        if given.palette is None:
            labels = LabelSpace.from_names(given.names, given.ignore_index)
            return labels, MaskDecoder(ids=identity(labels))
        labels = LabelSpace(names=given.names, palette=given.palette, ignore_index=given.ignore_index)
    except ValueError as error:  # not UTF-8, not JSON, not these fields, no label space
        raise DatasetError(f"{path} cannot be used: {error}") from error
    colors = {color: index for index, color in enumerate(labels.in_masks.palette)}
    if len(colors) < len(labels.in_masks):
        raise DatasetError(f"{path} gives two classes the same colour, expected one each")
    return labels, MaskDecoder(ids=identity(labels), colors=colors)


class _Named(NamedTuple):
    """Files by name, in order, and the pairs that share a name. Only the first file of a pair is among the files."""

    files: dict[str, Path]
    twins: list[tuple[Path, Path]]


def _source(images: _Named, masks: _Named, expected: str, decode: MaskDecoder) -> SplitFiles:
    return SplitFiles(images.files, masks.files, expected, decode, (*images.twins, *masks.twins))


def _images_in(folder: Path, suffix: str = "") -> _Named:
    files = folder.iterdir() if folder.is_dir() else ()
    return _by_name((file for file in files if file.suffix.lower() in SUFFIXES), suffix)


def _by_name(files: Iterable[Path], suffix: str = "") -> _Named:
    """Index files by stem without ``suffix``, except hidden files."""
    named = _Named({}, [])
    for file in sorted(files):
        name = file.stem.removesuffix(suffix)
        if file.name.startswith("."):
            continue
        if name in named.files:
            named.twins.append((named.files[name], file))
        else:
            named.files[name] = file
    return named


def _only(names: Iterable[str], named: _Named) -> _Named:
    return named._replace(files={name: named.files[name] for name in sorted(set(names)) if name in named.files})


def _names_in(list_file: Path) -> list[str]:
    """Read the names in a list file: one a line, the first word, with or without folder and suffix."""
    lines = list_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _subfolders(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []


def _first_folder(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
