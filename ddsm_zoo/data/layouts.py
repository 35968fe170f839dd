"""How the known data sets lie on disk: which files belong to a split, and which are missing. No file is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ddsm_zoo.config import from_dict
from ddsm_zoo.data.images import SUFFIXES
from ddsm_zoo.data.masks import (
    CAMVID_COLORS,
    CAMVID_IDS,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_TRAIN_IDS,
    DatasetError,
    MaskDecoder,
    identity,
)
from ddsm_zoo.data.problems import SHOWN, Problem
from ddsm_zoo.labels import CAMVID, CITYSCAPES, Color, LabelSpace

# Others, such as the test split of a benchmark, may come without masks.
LABELED_SPLITS = ("train", "val")


class Source(NamedTuple):
    """The files of one split by name; ``expected`` is where the mask of NAME should be.

    ``twins`` are pairs of files with one name, ``absent`` the names in the list file ``listed`` that no image has.
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
    """A data set on disk: ``find`` gives the files of a split, ``candidates`` may be splits.

    ``shape`` and ``coloured`` are words for errors: where the files, and where RGB masks, belong.
    """

    root: Path
    labels: LabelSpace
    find: Callable[[str], Source | None]
    candidates: Iterable[str]
    shape: str
    colored: str

    def splits(self) -> list[str]:
        """The splits that have images, those with labels first."""
        found = {name: self.find(name) for name in (*LABELED_SPLITS, *sorted(set(self.candidates)))}
        return [name for name, source in found.items() if source is not None and source.images]

    def source(self, split: str) -> Source:
        """The files of the split. Raises DatasetError where it has no images."""
        source = self.find(split)
        if source is not None and (source.images or source.absent):
            return source
        present = self.splits()
        instead = f"it has the splits {', '.join(present)}" if present else f"expected {self.shape}"
        raise DatasetError(f"{self.root} has no images for the split {split!r}, {instead}")

    def problems(self, split: str, source: Source) -> list[Problem]:
        """What is wrong with the files of a split as far as their names tell."""
        images, masks = source.images, source.masks
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
                count=len(source.twins),
                total=len(source.twins) + len(images) + len(masks),
                examples=tuple(" and ".join(self.below_root(*pair)) for pair in source.twins[:SHOWN]),
            ),
            Problem(
                kind="missing-image",
                split=split,
                what="no image for",
                noun=f"names in {source.listed.name}" if source.listed else "names",
                count=len(source.absent),
                total=len(source.absent) + len(images),
                examples=tuple(map(repr, source.absent[:SHOWN])),
            ),
            Problem(
                kind="missing-mask",
                severity="error" if strict else "warning",
                split=split,
                what="no mask for",
                noun="images",
                advice=f"expected {source.expected}",
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
        return tuple(file.relative_to(self.root).as_posix() for file in files)


def cityscapes_layout(root: Path) -> Layout:
    _require_folder(root)

    def find(split: str) -> Source:
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


def camvid_layout(root: Path) -> Layout:
    _require_folder(root)
    stills = _first_folder(root, "701_StillsRaw_full", "images")
    labeled = _first_folder(root, "LabeledApproved_full", "labels")

    def find(split: str) -> Source | None:
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


def folder_layout(root: Path) -> Layout:
    _require_folder(root)
    labels, decode = _read_labels(root / "labels.json")

    def find(split: str) -> Source:
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
        raise DatasetError(f'{path} is missing, expected a file like {{"names": ["road", "car"]}}')
    try:
        given = from_dict(_LabelFile, json.loads(path.read_text(encoding="utf-8")), "labels")
        if given.palette is None:
            labels = LabelSpace.from_names(given.names, given.ignore_index)
            return labels, MaskDecoder(ids=identity(labels))
        labels = LabelSpace(names=given.names, palette=given.palette, ignore_index=given.ignore_index)
    except ValueError as error:  # not UTF-8, not JSON, not these fields, no label space
        raise DatasetError(f"{path} cannot be used: {error}") from error
    colors = {color: index for index, color in enumerate(labels.palette)}
    if len(colors) < len(labels):
        raise DatasetError(f"{path} gives two classes the same colour, expected one each")
    return labels, MaskDecoder(ids=identity(labels), colors=colors)


class _Named(NamedTuple):
    """Files by name, in order, and the pairs of which only the first is among them because they share a name."""

    files: dict[str, Path]
    twins: list[tuple[Path, Path]]


def _source(images: _Named, masks: _Named, expected: str, decode: MaskDecoder) -> Source:
    return Source(images.files, masks.files, expected, decode, (*images.twins, *masks.twins))


def _images_in(folder: Path, suffix: str = "") -> _Named:
    files = folder.iterdir() if folder.is_dir() else ()
    return _by_name((file for file in files if file.suffix.lower() in SUFFIXES), suffix)


def _by_name(files: Iterable[Path], suffix: str = "") -> _Named:
    """Files by stem without ``suffix``; hidden files are none."""
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
    """The names that a list has: one a line, the first word, with or without folder and suffix."""
    lines = list_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _subfolders(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []


def _first_folder(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise DatasetError(f"data set folder {root} does not exist, expected the root of the data set")
