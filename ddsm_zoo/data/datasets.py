"""Segmentation data sets: the known layouts only list pairs of files, one `SegmentationDataset` reads them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from ddsm_zoo.config import from_dict
from ddsm_zoo.data.images import SUFFIXES, read_image, read_mask
from ddsm_zoo.data.masks import (
    CAMVID_COLOURS,
    CAMVID_IDS,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_TRAIN_IDS,
    DatasetError,
    MaskDecoder,
    identity,
)
from ddsm_zoo.data.scenes import render_scene
from ddsm_zoo.labels import CAMVID, CITYSCAPES, Colour, LabelSpace

__all__ = [
    "DatasetError",
    "MaskDecoder",
    "Pair",
    "SceneDataset",
    "SegmentationDataset",
    "camvid",
    "cityscapes",
    "folder",
    "open_dataset",
]


Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Pair(NamedTuple):
    """One example on disk; ``name`` identifies it within its split."""

    image: Path
    mask: Path
    name: str


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and mask, read when asked for.

    An item is (uint8 image (3, H, W), int64 mask (H, W)), or what ``transform`` makes of these two. The transform's
    randomness is a function of (seed, epoch, index) alone, whatever the order, worker or process, so that a run can be
    resumed exactly. Reading raises ImageError or DatasetError, naming the file.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        labels: LabelSpace,
        decode: MaskDecoder,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self.pairs = tuple(pairs)
        self.labels = labels
        self.decode = decode
        self.transform = transform
        self.seed = seed
        # shared memory, so that workers which outlive an epoch see the next one
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # untyped in torch

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = range(len(self))[index]
        image, mask = self.load(index)
        if self.transform is None:
            return image, mask
        entropy = np.random.SeedSequence([self.seed, int(self._epoch), index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also reset the accelerators' generators
            torch.default_generator.manual_seed(int(entropy[0]))
            return self.transform(image, mask)

    def set_epoch(self, epoch: int) -> None:
        """Draw the transform's randomness of this epoch from now on."""
        self._epoch.fill_(epoch)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """The untransformed item: uint8 image (3, H, W) and int64 mask (H, W)."""
        pair = self.pairs[index]
        image = pil_to_tensor(read_image(pair.image))
        stored = read_mask(pair.mask)
        if stored.shape[:2] != image.shape[1:]:
            raise DatasetError(
                f"mask {pair.mask} is {stored.shape[1]} x {stored.shape[0]} pixels, "
                f"expected {image.shape[2]} x {image.shape[1]} as its image {pair.image}"
            )
        return image, torch.from_numpy(self.decode(stored, pair.mask))


class SceneDataset(SegmentationDataset):
    """Rendered street scenes with CamVid's classes; ``load`` renders, the paths of ``pairs`` only name the scenes."""

    # seeds count up from here, so that splits of any size up to a billion share no scene
    SPLITS: Mapping[str, int] = {"train": 0, "val": 1_000_000_000}

    def __init__(self, count: int, split: str, transform: Transform | None = None, seed: int = 0) -> None:
        if split not in self.SPLITS:
            raise DatasetError(f"rendered scenes have no split {split!r}, expected one of {', '.join(self.SPLITS)}")
        names = [f"scene_{self.SPLITS[split] + index:010d}" for index in range(count)]
        pairs = [Pair(Path(f"{name}.png"), Path(f"{name}_mask.png"), name) for name in names]
        super().__init__(pairs, CAMVID, CAMVID_IDS, transform, seed)
        self.first_seed = self.SPLITS[split]

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = render_scene(self.first_seed + index)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask).long()


class _Source(NamedTuple):
    """The files of one split by name; ``expected`` is where the mask of NAME should be."""

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    expected: str
    decode: MaskDecoder


def cityscapes(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """Cityscapes: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` with ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``.

    Label ids become the 19 train ids. A split without ``labelIds`` uses its ``labelTrainIds``, which are train ids.
    """
    root = Path(root).expanduser()

    def find(split: str) -> _Source:
        images = _by_name(root.glob(f"leftImg8bit/{split}/*/*_leftImg8bit.png"), "_leftImg8bit")
        masks = _by_name(root.glob(f"gtFine/{split}/*/*_gtFine_labelIds.png"), "_gtFine_labelIds")
        decode = CITYSCAPES_LABEL_IDS
        if not masks:
            masks = _by_name(root.glob(f"gtFine/{split}/*/*_gtFine_labelTrainIds.png"), "_gtFine_labelTrainIds")
            decode = CITYSCAPES_TRAIN_IDS
        return _Source(images, masks, f"gtFine/{split}/CITY/NAME_gtFine_labelIds.png", decode)

    source = _find_split(root, split, find, _subfolders(root / "leftImg8bit"), "leftImg8bit/SPLIT/CITY/ and gtFine/")
    return SegmentationDataset(_match(source), CITYSCAPES, source.decode, transform, seed)


def camvid(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """CamVid with 11 classes, in any of its three common layouts.

    ``SPLIT`` with ``SPLITannot``: class ids, 11 is void. ``SPLIT`` with ``SPLIT_labels``: the original's 32 colours,
    files ``NAME_L.png``. ``701_StillsRaw_full`` or ``images`` with ``LabeledApproved_full`` or ``labels``: the same
    colours, the names that belong to a split in ``SPLIT.txt``.
    """
    root = Path(root).expanduser()
    stills = _first_folder(root, "701_StillsRaw_full", "images")
    labelled = _first_folder(root, "LabeledApproved_full", "labels")

    def find(split: str) -> _Source | None:
        annotated, coloured, listed = root / f"{split}annot", root / f"{split}_labels", root / f"{split}.txt"
        if annotated.is_dir():
            images, masks = _images_in(root / split), _images_in(annotated)
            return _Source(images, masks, f"{annotated.name}/NAME.png", CAMVID_IDS)
        if coloured.is_dir():
            images, masks = _images_in(root / split), _images_in(coloured, "_L")
            return _Source(images, masks, f"{coloured.name}/NAME_L.png", CAMVID_COLOURS)
        if stills and labelled and listed.is_file():
            images, masks = _listed(listed, _images_in(stills)), _images_in(labelled, "_L")
            return _Source(images, masks, f"{labelled.name}/NAME_L.png", CAMVID_COLOURS)
        return None

    candidates = [*_subfolders(root), *(file.stem for file in root.glob("*.txt"))]
    layout = "SPLIT/ with SPLITannot/ or SPLIT_labels/, or images/ and labels/ with SPLIT.txt"
    source = _find_split(root, split, find, candidates, layout)
    return SegmentationDataset(_match(source), CAMVID, source.decode, transform, seed)


def folder(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """Any task: ``images/SPLIT``, ``masks/SPLIT`` with the same file names, and ``labels.json``.

    ``labels.json`` holds ``names`` and, where wanted, ``palette`` (a colour a class) and ``ignore_index``. Masks are
    single-channel or palette images of class ids or, with a ``palette``, RGB images in its colours.
    """
    root = Path(root).expanduser()
    _require_folder(root)
    labels, decode = _read_labels(root / "labels.json")

    def find(split: str) -> _Source:
        images, masks = _images_in(root / "images" / split), _images_in(root / "masks" / split)
        return _Source(images, masks, f"masks/{split}/NAME.png", decode)

    source = _find_split(root, split, find, _subfolders(root / "images"), "images/SPLIT/ and masks/SPLIT/")
    return SegmentationDataset(_match(source), labels, decode, transform, seed)


_LAYOUTS: Mapping[str, Callable[[str, str, Transform | None, int], SegmentationDataset]] = {
    "camvid": camvid,
    "cityscapes": cityscapes,
    "folder": folder,
}


def open_dataset(spec: str, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """The data set ``camvid:ROOT``, ``cityscapes:ROOT``, ``folder:ROOT`` or ``scenes:N`` (N rendered scenes).

    Raises DatasetError when the spec, its root or the split cannot be used.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "scenes" and colon:
        if not (rest.isascii() and rest.isdigit() and 1 <= int(rest) <= 1_000_000_000):
            raise DatasetError(f"data set {spec!r} has {rest!r} scenes, expected scenes:N with a count of at least 1")
        return SceneDataset(int(rest), split, transform, seed)
    if kind not in _LAYOUTS or not rest:
        near = difflib.get_close_matches(kind, [*_LAYOUTS, "scenes"], n=1)
        hint = f"; did you mean {near[0]}:ROOT?" if near and near[0] != kind else ""
        raise DatasetError(
            f"data set {spec!r} is unknown, expected camvid:ROOT, cityscapes:ROOT, folder:ROOT or scenes:N{hint}"
        )
    return _LAYOUTS[kind](rest, split, transform, seed)


@dataclass(frozen=True, kw_only=True)
class _LabelFile:
    names: tuple[str, ...]
    palette: tuple[Colour, ...] | None = None
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
    colours = {colour: index for index, colour in enumerate(labels.palette)}
    if len(colours) < len(labels):
        raise DatasetError(f"{path} gives two classes the same colour, expected one each")
    return labels, MaskDecoder(ids=identity(labels), colours=colours)


def _find_split(
    root: Path, split: str, find: Callable[[str], _Source | None], candidates: Iterable[str], layout: str
) -> _Source:
    """What ``find`` says about the split; without images there the error names the candidates that have some."""
    _require_folder(root)
    source = find(split)
    if source is not None and source.images:
        return source
    found = {name: find(name) for name in sorted(set(candidates))}
    present = [name for name, other in found.items() if other is not None and other.images]
    instead = f"it has the splits {', '.join(present)}" if present else f"expected {layout}"
    raise DatasetError(f"{root} has no images for the split {split!r}, {instead}")


def _match(source: _Source) -> list[Pair]:
    missing = [name for name in source.images if name not in source.masks]
    if missing:
        raise DatasetError(
            f"image {source.images[missing[0]]} has no mask, expected {source.expected} "
            f"({len(missing)} of {len(source.images)} images lack one)"
        )
    return [Pair(source.images[name], source.masks[name], name) for name in sorted(source.images)]


def _listed(list_file: Path, images: Mapping[str, Path]) -> dict[str, Path]:
    """The images that a list names: one a line, the first word, with or without folder and suffix."""
    lines = list_file.read_text(encoding="utf-8", errors="replace").splitlines()
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    unknown = [name for name in names if name not in images]
    if unknown:
        raise DatasetError(f"{list_file} names {unknown[0]!r}, which is none of the {len(images)} images")
    return {name: images[name] for name in names}


def _images_in(folder: Path, suffix: str = "") -> dict[str, Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return _by_name((file for file in files if file.suffix.lower() in SUFFIXES), suffix)


def _by_name(files: Iterable[Path], suffix: str = "") -> dict[str, Path]:
    """Files by stem without ``suffix``, in order; hidden files are none."""
    named: dict[str, Path] = {}
    for file in sorted(files):
        name = file.stem.removesuffix(suffix)
        if file.name.startswith("."):
            continue
        if name in named:
            raise DatasetError(f"{named[name]} and {file} have the same name, expected one file for each")
        named[name] = file
    return named


def _subfolders(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []


def _first_folder(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise DatasetError(f"data set folder {root} does not exist, expected the root of the data set")
