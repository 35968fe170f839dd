"""Pictures of any size in bounded memory: a network runs on tiles, as if each saw the whole picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_zoo.inference.modes import Predict
from ddsm_zoo.layers.tiles import Averages, Span, StopForward, Tile, working_on
from ddsm_zoo.utils import Progress

Read = Callable[[slice, slice], Tensor]
"""Rows and columns of the picture -> (1, 3, h, w), normalised. A slice may end beyond the picture."""


STRIDE = 32  # tiles begin where a cell of the deepest features begins
MARGIN = 256
BLEND = 64
BAND = 128  # rows that are given at a time: what is done with them needs memory too
PASSES = 1
MIN_SIDE = 2 * MARGIN + 8 * STRIDE


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a picture of ``size`` (H, W) is cut into tiles of at most ``side`` pixels, margins included.

    Each tile stands for a part of its own and sees ``margin`` pixels more on every side. ``multiple`` is what the
    network extends the sides of its input to a multiple of. Raises ValueError for a side too small for the margins.
    """

    size: tuple[int, int]
    side: int
    margin: int = MARGIN
    blend: int = BLEND
    multiple: int = STRIDE

    def __post_init__(self) -> None:
        least = 2 * self.margin + 8 * STRIDE
        if self.side < least:
            raise ValueError(f"tiles of {self.side} pixels were asked for, expected at least {least}")

    def spans(self, axis: int) -> list[Span]:
        """The tiles along rows (0) or columns (1)."""
        length = _up(self.size[axis], self.multiple)
        inner = length - 2 * self.margin  # the tiles at the ends have one margin
        count = -(-inner // ((self.side - 2 * self.margin) // STRIDE * STRIDE)) if length > self.side else 1
        edges = [self.margin + _up(inner * index // count, STRIDE) for index in range(1, count)]
        spans = []
        for first, last in itertools.pairwise([0, *edges, length]):
            start, stop = max(0, first - self.margin), min(length, last + self.margin)
            spans.append(Span(start, stop - start, length, first, last))
        return spans

    def __len__(self) -> int:
        return len(self.spans(0)) * len(self.spans(1))


@torch.inference_mode()
def predict_bands(
    predict: Predict, read: Read, tiling: Tiling, *, passes: int = PASSES, progress: Progress | None = None
) -> Iterator[Tensor]:
    """The scores of a picture from top to bottom, as bands (1, K, h, W) of at most `BAND` rows.

    In ``passes`` over all tiles first, averages over the whole picture are gathered. Where neighbouring tiles meet, the
    weight of one falls as that of the other rises. ``progress(done, total)`` is called after each tile of each pass.
    """
    averages = Averages()
    tiles = list(itertools.product(tiling.spans(0), tiling.spans(1)))
    steps = itertools.count(1)

    def run(rows: Span, columns: Span, gather: bool) -> Tensor:
        tile = Tile(rows, columns, averages, gather)
        try:
            with working_on(tile):
                return predict(read(_slice(rows), _slice(columns)))
        finally:
            averages.expected = tile.calls
            if progress:
                progress(next(steps), len(tiles) * (passes + 1))

    for _ in range(passes):
        for rows, columns in tiles:
            with suppress(StopForward):
                run(rows, columns, gather=True)
        averages.renew()
    height, width = tiling.size
    half = tiling.blend // 2
    carry: Tensor | None = None
    for rows in tiling.spans(0):
        y = _reach(rows, half, height)
        band: Tensor | None = None
        for columns in tiling.spans(1):
            x = _reach(columns, half, width)
            scores = run(rows, columns, gather=False)
            scores = scores[..., _shifted(y, rows.start), _shifted(x, columns.start)]
            if band is None:
                band = scores.new_zeros(*scores.shape[:3], width, dtype=torch.float32)
            weight = _weights(rows, half, y)[:, None] * _weights(columns, half, x)
            band[..., x] += scores * weight.to(scores.device)
        assert band is not None
        if carry is not None:
            band[:, :, : 2 * half] += carry
        done = band.shape[2] - (2 * half if rows.last < rows.whole else 0)
        carry = band[:, :, done:].clone()
        for top in range(0, done, BAND):
            # a copy, since whoever looks at a part of the band would keep all of it beside the next one
            yield band[:, :, top : min(top + BAND, done)].clone()


def largest_side(size: tuple[int, int], per_pixel: float, num_classes: int, memory: int, taken: int) -> int:
    """The side of the largest tiles with which ``memory`` bytes suffice for a picture of ``size`` (H, W).

    The network works in ``per_pixel`` bytes for each pixel of a tile. It gets what is not ``taken``, and half of the
    memory at most. Raises ValueError for too little memory.
    """
    free = min(memory // 2, memory - taken)
    if per_pixel * size[0] * size[1] <= free:
        return max(size)
    for side in range(4096, MIN_SIDE - 1, -STRIDE):
        if tiled_memory(side, size[1], per_pixel, num_classes) <= free:
            return side
    least = tiled_memory(MIN_SIDE, size[1], per_pixel, num_classes)
    needed = math.ceil(max(2 * least, least + taken) / 2**20)
    raise ValueError(
        f"the memory (--memory) is {memory // 2**20} MiB, but with this picture and tiles of {MIN_SIDE} pixels "
        f"the process needs {needed} MiB; raise it"
    )


def tiled_memory(side: int, width: int, per_pixel: float, num_classes: int) -> float:
    """The bytes in which tiles of that side label a picture of that width: the network's, and the scores of a band."""
    rows = side - 2 * MARGIN + 2 * BLEND
    return per_pixel * side**2 + 4 * num_classes * rows * width


def _reach(span: Span, half: int, length: int) -> slice:
    """What a tile adds to: its own part, and beyond it half of where it meets its neighbours."""
    return slice(max(0, span.first - half), min(length, span.last + half))


def _weights(span: Span, half: int, reach: slice) -> Tensor:
    """The weights of a tile over its reach: 1, but ramps where it meets its neighbours."""
    place = torch.arange(reach.start, reach.stop) + 0.5
    rise = (place - span.first + half) / (2 * half) if span.first else torch.ones_like(place)
    fall = (span.last + half - place) / (2 * half) if span.last < span.whole else torch.ones_like(place)
    return torch.minimum(rise, fall).clamp(0, 1)


def _shifted(part: slice, start: int) -> slice:
    return slice(part.start - start, part.stop - start)


def _slice(span: Span) -> slice:
    return slice(span.start, span.start + span.length)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
