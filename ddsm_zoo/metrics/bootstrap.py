"""Bootstrap intervals of a score over images, sequences or blocks.

They tell how far the score would move with other images of the same kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_zoo.errors import ArgumentError

LEVEL = 0.95
ENOUGH = 10  # units; the quantiles of fewer are rough


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Units that the bootstrap draws with replacement.

    Attributes:
        by: Kind of unit, ``image``, ``sequence`` or ``block:N``.
        units: Unit of each image, from 0 to ``count`` - 1.
        note: One line on how far you can trust the intervals if the images are video frames.
    """

    by: str
    units: tuple[int, ...]
    note: str

    @property
    def count(self) -> int:
        """Number of units."""
        return max(self.units) + 1

    @classmethod
    def plan(cls, by: str, names: Sequence[str], sequences: Sequence[str | None]) -> Resampling:
        """Split images into the units that are drawn.

        Args:
            by: ``image``, ``sequence``, or ``block:N`` for blocks of N consecutive images of a sequence. Images are
                ordered by name, with numbers compared as numbers. A sequence's last block may be shorter.
            names: Name of each image.
            sequences: Sequence of each image, None where it is unknown.

        Raises:
            ValueError: Another ``by``, ``sequence`` with an unknown one, or all images in one unit.
        """
        size = _block_size(by)
        keys: Sequence[Hashable]
        if by == "image":
            keys = range(len(names))
        elif by == "sequence":
            keys = _known(names, sequences)
        else:
            keys = _blocks(size, names, sequences)
        number = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        if by != "image" and len(number) == 1:
            raise ArgumentError(_one_unit(by, len(names)), name="by", got=by)
        units = tuple(number[key] for key in keys)
        return cls(by=by, units=units, note=_note(by, len(number), sequences))


def resample(counts: Tensor, resamples: int, seed: int = 0, units: Sequence[int] | None = None) -> Tensor:
    """Sum per-image ``counts`` (n, ...) over ``resamples`` draws with replacement, (resamples, ...) float64.

    A draw takes n images. With the unit of each image in ``units``, it takes as many units as exist, each with all its
    images. One seed draws the same units for any counts, so two models are compared on the same draws.
    """
    if units is not None:
        summed = counts.new_zeros(max(units) + 1, *counts.shape[1:])
        counts = summed.index_add(0, torch.tensor(units, device=counts.device), counts)
    drawn = len(counts)
    generator = torch.Generator().manual_seed(seed)
    # One draw at a time, so that a run of many draws begins with those of a run of few
    draws = [torch.randint(drawn, (drawn,), generator=generator) for _ in range(resamples)]
    weights = torch.stack([torch.bincount(draw, minlength=drawn) for draw in draws]).double()
    return (weights @ counts.reshape(drawn, -1).double()).reshape(resamples, *counts.shape[1:])


def interval(values: Tensor) -> list[list[float]]:
    """Compute the percentile interval of LEVEL over the first dimension: [low, high] per entry of ``values`` (B, K).

    Draws that lack the class (nan) are left out. A class that occurs in no draw gets [nan, nan].
    """
    tail = (1 - LEVEL) / 2
    bounds = torch.nanquantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    limits: list[list[float]] = bounds.T.tolist()
    return limits


def check_unit(by: str) -> None:
    """Raise ValueError unless ``by`` is ``image``, ``sequence`` or ``block:N``."""
    _block_size(by)


def _block_size(by: str) -> int:
    """Parse N of ``block:N``, 0 for other units."""
    if by in ("image", "sequence"):
        return 0
    match = re.fullmatch(r"block:([1-9][0-9]*)", by, re.ASCII)
    if match is None:
        raise ArgumentError(
            f"the bootstrap cannot resample by {by!r}, expected image, sequence or block:N with N of 1 or more",
            name="by",
            got=by,
            expected="image, sequence or block:N",
        )
    return int(match[1])


def _known(names: Sequence[str], sequences: Sequence[str | None]) -> list[str]:
    unknown = [name for name, sequence in zip(names, sequences, strict=True) if sequence is None]
    if unknown:
        raise ArgumentError(
            f"no sequence in the name of {len(unknown)} of {len(names)} images, first {unknown[0]!r}: expected "
            "SEQUENCE_FRAME as in 0016E5_07959; use block:N for frames of one video and image for independent images",
            name="by",
            got=unknown[0],
            expected="SEQUENCE_FRAME",
        )
    return [sequence for sequence in sequences if sequence is not None]


def _blocks(size: int, names: Sequence[str], sequences: Sequence[str | None]) -> list[Hashable]:
    """Return the sequence and the block number of each image."""
    keys: list[Hashable] = [None] * len(names)
    seen: Counter[str | None] = Counter()
    for index in sorted(range(len(names)), key=lambda index: _natural(names[index])):
        sequence = sequences[index]
        keys[index] = (sequence, seen[sequence] // size)
        seen[sequence] += 1
    return keys


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that compares numbers as numbers: 9 before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _one_unit(by: str, images: int) -> str:
    blocks = f"block:{max(images // ENOUGH, 1)}"
    if by == "sequence":
        return f"the {images} images are one sequence, expected at least two to draw by sequence; use {blocks}"
    return f"{by} puts all {images} images into one block, expected at least two blocks; use {blocks}"


def _note(by: str, count: int, sequences: Sequence[str | None]) -> str:
    lengths = Counter(sequence for sequence in sequences if sequence is not None)
    rough = f"; only {count}, so they are rough" if count < ENOUGH else ""
    if by == "sequence":
        return f"95 % intervals over {count} sequences: valid for video frames{rough}"
    if by != "image":
        clip = "; one sequence says nothing about other places" if len(lengths) == 1 else ""
        drawn = f"{count} blocks of up to {by.removeprefix('block:')} consecutive images"
        use = "valid for video frames if blocks are longer than the correlation"
        return f"95 % intervals over {drawn}: {use}{rough}{clip}"
    videos = [length for length in lengths.values() if length > 1]
    unknown = len(sequences) - lengths.total()
    better = "sequence" if len(lengths) >= ENOUGH and not unknown else f"block:{max(count // ENOUGH, 2)}"
    if videos:
        clips = "1 sequence" if len(videos) == 1 else f"{len(videos)} sequences"
        return (
            f"95 % intervals over {count} images are too narrow: by their names, {sum(videos)} are frames of {clips}, "
            f"and frames of one video are alike; use --bootstrap-by {better}"
        )
    if unknown:
        return (
            f"95 % intervals over {count} images: valid if they are independent{rough}; too narrow if they are "
            f"frames of a video, then use --bootstrap-by {better}"
        )
    return f"95 % intervals over {count} images, each from its own sequence: valid{rough}"
