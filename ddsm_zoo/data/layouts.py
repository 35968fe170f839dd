"""Layouts of data sets on disk: the files of each split, and missing ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ddsm_zoo.data.arrangements import arrange, nested_hint
from ddsm_zoo.data.importing.detect import import_hint
from ddsm_zoo.data.importing.files import split_of
from ddsm_zoo.data.label_file import LABEL_FILE, read_label_file, read_text
from ddsm_zoo.data.listing import Named, Pairing, by_name, images_in, pair_masks, subfolders, unread_pictures
from ddsm_zoo.data.mask_names import class_masks_hint, suffix_hint
from ddsm_zoo.data.masks import (
    CAMVID_COLORS,
    CAMVID_IDS,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_TRAIN_IDS,
    DatasetError,
    MaskDecoder,
    settle,
)
from ddsm_zoo.data.pairs import Pair, SegmentationDataset, Transform, UnlabeledImages
from ddsm_zoo.data.problems import Problem
from ddsm_zoo.labels import CAMVID, CITYSCAPES, LabelSpace

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
        guessed: Names of images whose masks have other names.
        left_out: Pictures in formats that are not read.
        understood: Places of images and masks in words, where they are not the usual ones.
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    expected: str
    decode: MaskDecoder
    twins: tuple[tuple[Path, Path], ...] = ()
    absent: tuple[str, ...] = ()
    listed: Path | None = None
    guessed: tuple[str, ...] = ()
    left_out: tuple[Path, ...] = ()
    understood: str = ""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Data set of files on disk.

    Attributes:
        root: Folder of the data set.
        labels: Classes of the data set.
        find: Function ``find(split)`` that returns the files of a split, and None or no images for a missing split.
        shape: Expected places of the files, for errors: ``images/SPLIT/ and masks/SPLIT/``.
        candidates: Names that may be splits, besides train and val.
        colored: For errors, the place of masks with RGB colors, or the setting that makes them readable.
        outside: Images that lie in no split.
        bits: Bits in use of images of 16 bits. None takes those that a file states, or 16.
        label_file: True if a ``labels.json`` says what the stored values stand for.
        hint: End of the error of a missing split: what else the folder may hold.
    """

    root: Path
    labels: LabelSpace
    find: Callable[[str], SplitFiles | None]
    shape: str
    candidates: Iterable[str] = ()
    colored: str = ""
    outside: tuple[Path, ...] = ()
    bits: int | None = None
    label_file: bool = False
    hint: str = ""

    def splits(self) -> list[str]:
        """Return the splits that have images, those with labels first.

        A train or val of which only masks or unread formats are there counts too: nothing else may take its place.
        """
        found = {name: self.find(name) for name in (*LABELED_SPLITS, *sorted(set(self.candidates)))}
        return [
            name
            for name, files in found.items()
            if files and (files.images or (name in LABELED_SPLITS and (files.masks or files.left_out)))
        ]

    def files(self, split: str) -> SplitFiles:
        """Return the files of the split. Raises DatasetError if it has no images, or its masks have other classes."""
        files = self.find(split)
        if files is not None and (files.images or files.absent):
            files.decode.require_classes(self.labels)
            return files
        present = [name for name in self.splits() if name != split]
        instead = f"it has the splits {', '.join(present)}" if present else f"expected {self.shape}"
        instead += split_hint(split, present) + self.hint
        if self.outside:
            first, count = self.below_root(self.outside[0])[0], len(self.outside)
            instead += f"; {count} of its images lie in no split, first {first}: move them to images/{split}"
        unread = files.left_out if files and files.left_out else unread_pictures(self.root)
        if unread:
            first = self.below_root(unread[0])[0]
            instead += f"; {len(unread)} files are in a format that is not read, first {first}: convert them"
        if files and files.masks:
            instead += f"; {len(files.masks)} masks are there, first {self.below_root(*files.masks.values())[0]}"
        raise DatasetError(
            f"{self.root} has no images for the split {split!r}, {instead}",
            kind="missing-split",
            path=self.root,
            name=split,
        )

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
                raise DatasetError(f"{self.root} cannot be used: {problem}", kind=problem.kind, path=self.root)
        pairs = [Pair(files.images[name], files.masks[name], name) for name in sorted(files.images)]
        return SegmentationDataset(pairs, self.labels, files.decode, transform, seed, bits=self.bits)

    def open_unlabeled(self, split: str, transform: Transform | None = None) -> UnlabeledImages:
        """Open the images of the split without their masks. Raises DatasetError if it has none."""
        files = self.files(split)
        return UnlabeledImages(files.images, self.labels, files.decode, transform, bits=self.bits)

    def problems(self, split: str, files: SplitFiles) -> list[Problem]:
        """List the problems of a split that the names of its files show."""
        images, masks, show = files.images, files.masks, self.below_root
        of = functools.partial(Problem.of, split=split)
        found = [
            of(
                [" and ".join(show(*pair)) for pair in files.twins],
                kind="same-name",
                what="the same name as another file for",
                total=len(files.twins) + len(images) + len(masks),
                noun="files",
                advice="expected one file for each name",
            ),
            of(
                [repr(name) for name in files.absent],
                kind="missing-image",
                what="no image for",
                total=len(files.absent) + len(images),
                noun=f"names in {files.listed.name}" if files.listed else "names",
            ),
            of(
                show(*(image for name, image in images.items() if name not in masks)),
                kind="missing-mask",
                severity="error" if masks or split in LABELED_SPLITS else "warning",
                what="no mask for",
                total=len(images),
                noun="images",
                advice=f"expected {files.expected}",
            ),
            of(
                show(*(mask for name, mask in masks.items() if name not in images)),
                kind="unused-mask",
                severity="warning",
                what="no image for",
                total=len(masks),
                advice="which are left out",
            ),
            of(
                show(*files.left_out),
                kind="left-out",
                severity="warning",
                what="a format that is not read in",
                total=len(files.left_out) + len(images) + len(masks),
                noun="files",
                advice="which are left out: convert images to JPEG or PNG, masks to PNG",
            ),
            of(
                show(*self.outside),
                kind="outside-image",
                severity="warning",
                what="no part in this or any split for",
                total=len(self.outside) + len(images),
                noun="images",
                advice="which are left out: move them into the folder of a split",
            ),
            of(
                [f"{masks[name].name} for {images[name].name}" for name in files.guessed],
                kind="mask-name",
                severity="note",
                what="another name than the image's for",
                total=len(masks),
                advice="matched by the rest of the name",
            ),
            Problem(
                kind="arrangement",
                severity="note",
                split=split,
                what=files.understood,
                count=int(files.understood != ""),
            ),
        ]
        return [problem for problem in found if problem.count]

    def below_root(self, *files: Path) -> tuple[str, ...]:
        """Return paths relative to the root, and absolute ones for files elsewhere."""
        return tuple(
            (file.relative_to(self.root) if file.is_relative_to(self.root) else file).as_posix() for file in files
        )


def split_hint(split: str, present: Iterable[str]) -> str:
    """Return a hint at the folder that probably is the missing ``split``, such as ``valid``; empty without one."""
    near = [name for name in present if name != split and (split_of(name) or name.casefold()) == split]
    return f"; is {near[0]} meant? Call its folders {split}" if near else ""


def existing_folder(root: str | Path) -> Path:
    """Return the root of a data set, with ~ expanded. Raises DatasetError if the folder does not exist."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise DatasetError(
            f"data set folder {folder} {problem}, expected the root of the data set",
            kind="missing-folder",
            path=folder,
        )
    return folder


def cityscapes_layout(root: str | Path) -> Layout:
    root = existing_folder(root)

    def find(split: str) -> SplitFiles:
        images = by_name(root.glob(f"leftImg8bit/{split}/*/*_leftImg8bit.png"), "_leftImg8bit")
        masks = by_name(root.glob(f"gtFine/{split}/*/*_gtFine_labelIds.png"), "_gtFine_labelIds")
        decode = CITYSCAPES_LABEL_IDS
        if not masks.files:
            masks = by_name(root.glob(f"gtFine/{split}/*/*_gtFine_labelTrainIds.png"), "_gtFine_labelTrainIds")
            decode = CITYSCAPES_TRAIN_IDS
        return _source(images, masks, f"gtFine/{split}/CITY/NAME_gtFine_labelIds.png", decode)

    return Layout(
        root=root,
        labels=CITYSCAPES,
        find=find,
        candidates=subfolders(root / "leftImg8bit"),
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
            return _source(images_in(root / split), images_in(annotated), f"{annotated.name}/NAME.png", CAMVID_IDS)
        if colored.is_dir():
            masks = images_in(colored, "_L")
            return _source(images_in(root / split), masks, f"{colored.name}/NAME_L.png", CAMVID_COLORS)
        if stills and labeled and listed.is_file():
            names = _names_in(listed)
            images, masks = (_only(names, images_in(folder, end)) for folder, end in ((stills, ""), (labeled, "_L")))
            source = _source(images, masks, f"{labeled.name}/NAME_L.png", CAMVID_COLORS)
            return source._replace(absent=tuple(name for name in names if name not in images.files), listed=listed)
        return None

    return Layout(
        root=root,
        labels=CAMVID,
        find=find,
        candidates=[*subfolders(root), *(file.stem for file in root.glob("*.txt"))],
        shape="SPLIT/ with SPLITannot/ or SPLIT_labels/, or images/ and labels/ with SPLIT.txt",
        colored="CamVid's colors belong in SPLIT_labels/NAME_L.png",
    )


def folder_layout(root: str | Path) -> Layout:
    root = existing_folder(root)
    labels, decode, suffix, bits = read_label_file(
        root / LABEL_FILE, lambda: class_masks_hint(arrange(root, None)) or nested_hint(root)
    )
    arrangement = arrange(root, suffix)
    candidates = [*arrangement.places]
    listed = functools.cache(lambda split: arrangement.place(split).files(suffix))
    apart = functools.cache(lambda: class_masks_hint(arrangement))

    @functools.cache
    def settled() -> MaskDecoder:
        """Read masks of two classes alike in all splits."""
        splits = sorted({*LABELED_SPLITS, *candidates}, key=lambda split: split not in LABELED_SPLITS)
        return settle(decode, (file for split in splits for file in listed(split)[1].files.values()))

    def find(split: str) -> SplitFiles:
        images, stored = listed(split)
        masks = _with_suffix(stored, suffix) if suffix else stored
        paired = pair_masks(images.files, masks.files)
        expected = f"{arrangement.place(split).masks.relative_to(root).as_posix()}/NAME{suffix or ''}.png"
        if images.files and images.files.keys().isdisjoint(paired.masks):
            if apart():
                paired = Pairing({})
            names = [*(stored.files or images.files)]
            expected += apart() or suffix_hint([*images.files], names, suffix) or import_hint(root)
        masks = masks._replace(files=paired.masks, twins=(*masks.twins, *paired.rivals))
        files = _source(images, masks, expected, settled())
        return files._replace(guessed=paired.guessed, understood=arrangement.understood(split))

    return Layout(
        root=root,
        labels=labels,
        find=find,
        candidates=candidates,
        shape="images/SPLIT/ and masks/SPLIT/",
        colored='labels.json reads colors once it has a "palette", the color of each name',
        outside=arrangement.outside(),
        bits=bits,
        label_file=True,
        hint="" if "train" in arrangement.places else class_masks_hint(arrangement) or nested_hint(root),
    )


def _source(images: Named, masks: Named, expected: str, decode: MaskDecoder) -> SplitFiles:
    return SplitFiles(
        images.files,
        masks.files,
        expected,
        decode,
        (*images.twins, *masks.twins),
        left_out=(*images.left_out, *masks.left_out),
    )


def _with_suffix(masks: Named, suffix: str) -> Named:
    """Name masks without the suffix that ``labels.json`` gives. Files without it belong to no image."""
    files = {name.removesuffix(suffix): file for name, file in masks.files.items() if name.endswith(suffix)}
    others = {file.name: file for name, file in masks.files.items() if not name.endswith(suffix)}
    return masks._replace(files=files | others)


def _only(names: Iterable[str], named: Named) -> Named:
    return named._replace(files={name: named.files[name] for name in sorted(set(names)) if name in named.files})


def _names_in(list_file: Path) -> list[str]:
    """Read the names in a list file: one a line, the first word, with or without folder and suffix."""
    try:
        lines = read_text(list_file).splitlines()
    except ValueError as error:
        raise DatasetError(f"{list_file} cannot be read: {error}", kind="list-file", path=list_file) from error
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _first_folder(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
