"""Pairs of image and mask, read on access."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from ddsm_zoo.data.facts import image_facts
from ddsm_zoo.data.images import read_image
from ddsm_zoo.data.masks import DatasetError, MaskDecoder
from ddsm_zoo.labels import LabelSpace

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Pair(NamedTuple):
    """One example on disk. ``name`` identifies it within its split."""

    image: Path
    mask: Path
    name: str


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of image and mask, read on access.

    An item is (uint8 image (3, H, W), int64 mask (H, W)), or the result of ``transform`` on these two. The transform's
    randomness depends on (seed, epoch, index) alone, for any order, worker or process, so you can resume a run exactly.
    Reading raises ImageError or DatasetError, naming the file. If you override `load` in a subclass, look items up by
    ``pairs[index]``, because `subset` keeps only some pairs. ``bits`` are those that images of 16 bits
    use, as `read_image` takes them.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        labels: LabelSpace,
        decode: MaskDecoder,
        transform: Transform | None = None,
        seed: int = 0,
        *,
        bits: int | None = None,
    ) -> None:
        self.bits = bits
        self.pairs = tuple(pairs)
        self.labels = labels
        self.decode = decode
        self.transform = transform
        self.seed = seed
        self._epoch = _shared_zero()

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
        """Use the transform's randomness of this epoch from now on."""
        self._epoch.fill_(epoch)

    def subset(self, indices: Iterable[int], transform: Transform | None = None, seed: int = 0) -> SegmentationDataset:
        """Return the items of these indices as a separate data set, in its first epoch."""
        part = copy.copy(self)
        part.pairs = tuple(self.pairs[index] for index in indices)
        part.transform, part.seed, part._epoch = transform, seed, _shared_zero()
        return part

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Load the untransformed item: uint8 image (3, H, W) and int64 mask (H, W)."""
        pair = self.pairs[index]
        image = pil_to_tensor(read_image(pair.image, bits=self.bits))
        mask = self.decode.read(pair.mask)
        if mask.shape != image.shape[1:]:
            rotated = ", which EXIF rotates" if image_facts(pair.image).rotated else ""
            raise DatasetError(
                f"mask {pair.mask} is {mask.shape[1]} x {mask.shape[0]} pixels, "
                f"expected {image.shape[2]} x {image.shape[1]} as its image {pair.image}{rotated}",
                kind="size-mismatch",
                path=pair.mask,
                got=mask.shape,
                expected=tuple(image.shape[1:]),
            )
        return image, torch.from_numpy(mask)


class UnlabeledImages(SegmentationDataset):
    """Images without masks, by name, as in a benchmark's test split. Every mask is fully ignored."""

    def __init__(
        self,
        images: Mapping[str, Path],
        labels: LabelSpace,
        decode: MaskDecoder,
        transform: Transform | None = None,
        *,
        bits: int | None = None,
    ) -> None:
        pairs = [Pair(path, path, name) for name, path in sorted(images.items())]
        super().__init__(pairs, labels, decode, transform, bits=bits)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        image = pil_to_tensor(read_image(self.pairs[index].image, bits=self.bits))
        return image, torch.full(image.shape[1:], self.labels.ignore_index)


def _shared_zero() -> Tensor:
    """Create an epoch in shared memory, so that workers that outlive an epoch see the next one."""
    zero = torch.zeros((), dtype=torch.int64)
    with contextlib.suppress(RuntimeError):  # a machine without shared memory can have no workers either
        zero.share_memory_()
    return zero
