"""Tiled inference in bounded memory. Each tile is labeled as if the network saw the whole picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_zoo.errors import ArgumentError
from ddsm_zoo.inference.modes import Predict
from ddsm_zoo.layers.tiles import Averages, Span, StopForward, Tile, working_on
from ddsm_zoo.utils import Progress

Read = Callable[[slice, slice], Tensor]
"""Maps rows and columns of the picture to (1, 3, h, w), normalized. A slice may end beyond the picture."""


STRIDE = 32  # tiles start on a cell of the deepest features
MARGIN = 256
BLEND = 64
BAND = 128  # rows per yield: the caller's work on them needs memory too
PASSES = 1
MIN_SIDE = 2 * MARGIN + 8 * STRIDE


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Layout of the tiles of a picture.

    Each tile covers a part of its own and sees ``margin`` more pixels on every side.

    Attributes:
        size: Size (H, W) of the picture in pixels.
        side: Maximum side of a tile in pixels, margins included.
        margin: Context on every side in pixels.
        blend: Width in pixels over which neighboring tiles are blended.
        multiple: The network extends the sides of its input to a multiple of this.

    Raises:
        ValueError: ``side`` is too small for the margins.
    """

    size: tuple[int, int]
    side: int
    margin: int = MARGIN
    blend: int = BLEND
    multiple: int = STRIDE

    def __post_init__(self) -> None:
        least = 2 * self.margin + 8 * STRIDE
        if self.side < least:
            text = f"tile is {self.side} pixels, expected at least {least}"
            raise ArgumentError(text, name="tile", got=self.side, expected=least)

    def spans(self, axis: int) -> list[Span]:
        """Return the tiles along rows (0) or columns (1)."""
        length = _up(self.size[axis], self.multiple)
        inner = length - 2 * self.margin  # the first and last tiles have one margin
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
    """Predict a picture tile by tile and yield its scores from top to bottom.

    First, ``passes`` over all tiles gather averages over the whole picture. Neighboring tiles are blended: the weight
    of one falls as that of the other rises.

    Args:
        predict: Function from images to scores.
        read: Reads a part of the picture as (1, 3, h, w), normalized.
        tiling: Layout of the tiles.
        passes: Number of passes that gather averages.
        progress: Called as ``progress(done, total)`` after each tile of each pass.

    Returns:
        An iterator over bands of scores (1, K, h, W), h at most `BAND` rows.
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
            # a copy, because a view would keep the whole band alive while the next one is computed
            yield band[:, :, top : min(top + BAND, done)].clone()


def largest_side(size: tuple[int, int], per_pixel: float, num_classes: int, memory: int, taken: int) -> int:
    """Return the side of the largest tiles with which ``memory`` bytes suffice for a picture of ``size`` (H, W).

    The network needs ``per_pixel`` bytes for each pixel of a tile. It gets the memory that is not ``taken``, and at
    most half of ``memory``. Raises ValueError for too little memory.
    """
    free = min(memory // 2, memory - taken)
    if per_pixel * size[0] * size[1] <= free:
        return max(size)
    for side in range(4096, MIN_SIDE - 1, -STRIDE):
        if tiled_memory(side, size[1], per_pixel, num_classes) <= free:
            return side
    least = tiled_memory(MIN_SIDE, size[1], per_pixel, num_classes)
    needed = math.ceil(max(2 * least, least + taken) / 2**20)
    raise ArgumentError(
        f"the memory (--memory) is {memory // 2**20} MiB, but with this picture and tiles of {MIN_SIDE} pixels "
        f"the process needs {needed} MiB; raise it",
        kind="memory-limit",
        name="memory",
        got=memory,
        expected=needed * 2**20,
    )


def tiled_memory(side: int, width: int, per_pixel: float, num_classes: int) -> float:
    """Return the bytes for tiles of that side in a picture of that width: the network's, and the scores of a band."""
    rows = side - 2 * MARGIN + 2 * BLEND
    return per_pixel * side**2 + 4 * num_classes * rows * width


def _reach(span: Span, half: int, length: int) -> slice:
    """Return the span that a tile contributes to: its own part plus half of each overlap with its neighbors."""
    return slice(max(0, span.first - half), min(length, span.last + half))


def _weights(span: Span, half: int, reach: slice) -> Tensor:
    """Return the weights of a tile over its reach: 1, with ramps in the overlaps."""
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
