"""Segmentation data sets: `layouts` lists pairs of files, one `SegmentationDataset` reads them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from ddsm_zoo.data.images import read_image, read_mask
from ddsm_zoo.data.layouts import Layout, camvid_layout, cityscapes_layout, folder_layout
from ddsm_zoo.data.masks import CAMVID_IDS, DatasetError, MaskDecoder
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.labels import CAMVID, LabelSpace

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
    "open_layout",
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


def cityscapes(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """Cityscapes: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` with ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``.

    Label ids become the 19 train ids. A split without ``labelIds`` uses its ``labelTrainIds``, which are train ids.
    """
    return _open(cityscapes_layout(Path(root).expanduser()), split, transform, seed)


def camvid(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """CamVid with 11 classes, in any of its three common layouts.

    ``SPLIT`` with ``SPLITannot``: class ids, 11 is void. ``SPLIT`` with ``SPLIT_labels``: the original's 32 colours,
    files ``NAME_L.png``. ``701_StillsRaw_full`` or ``images`` with ``LabeledApproved_full`` or ``labels``: the same
    colours, the names that belong to a split in ``SPLIT.txt``.
    """
    return _open(camvid_layout(Path(root).expanduser()), split, transform, seed)


def folder(root: str | Path, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """Any task: ``images/SPLIT``, ``masks/SPLIT`` with the same file names, and ``labels.json``.

    ``labels.json`` holds ``names`` and, where wanted, ``palette`` (a colour a class) and ``ignore_index``. Masks are
    single-channel or palette images of class ids or, with a ``palette``, RGB images in its colours.
    """
    return _open(folder_layout(Path(root).expanduser()), split, transform, seed)


_LAYOUTS: Mapping[str, Callable[[Path], Layout]] = {
    "camvid": camvid_layout,
    "cityscapes": cityscapes_layout,
    "folder": folder_layout,
}


def open_layout(spec: str) -> Layout:
    """How the data set ``camvid:ROOT``, ``cityscapes:ROOT`` or ``folder:ROOT`` lies on disk.

    Raises DatasetError when the spec or its root cannot be used.
    """
    kind, _, root = spec.partition(":")
    if kind not in _LAYOUTS or not root:
        near = difflib.get_close_matches(kind, [*_LAYOUTS, "scenes"], n=1)
        hint = f"; did you mean {near[0]}:ROOT?" if near and near[0] != kind else ""
        raise DatasetError(
            f"data set {spec!r} is unknown, expected camvid:ROOT, cityscapes:ROOT, folder:ROOT or scenes:N{hint}"
        )
    return _LAYOUTS[kind](Path(root).expanduser())


def open_dataset(spec: str, split: str, transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
    """The data set ``camvid:ROOT``, ``cityscapes:ROOT``, ``folder:ROOT`` or ``scenes:N`` (N rendered scenes).

    Raises DatasetError when the spec, its root or the split cannot be used.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "scenes" and colon:
        if not (rest.isascii() and rest.isdigit() and 1 <= int(rest) <= 1_000_000_000):
            raise DatasetError(f"data set {spec!r} has {rest!r} scenes, expected scenes:N with a count of at least 1")
        return SceneDataset(int(rest), split, transform, seed)
    return _open(open_layout(spec), split, transform, seed)


def _open(layout: Layout, split: str, transform: Transform | None, seed: int) -> SegmentationDataset:
    source = layout.source(split)
    for problem in layout.problems(split, source):
        # without masks there are no pairs, even where that is no more than a warning
        if problem.severity == "error" or problem.kind == "missing-mask":
            raise DatasetError(f"{layout.root} cannot be used: {problem}")
    pairs = [Pair(source.images[name], source.masks[name], name) for name in sorted(source.images)]
    return SegmentationDataset(pairs, layout.labels, source.decode, transform, seed)
