"""Run a network on one tile of an image with the same result as on the whole image.

Convolutions and bilinear resizing look at a neighborhood, which the margin of a tile provides. Two kinds of operation
need the whole image: averages over it, and maps that stretch over it. Layers do both through `common`, and `common`
asks this module for the current tile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddsm_zoo.ops.traced import is_traced


@dataclass(frozen=True)
class Span:
    """Part of one axis of a map that a tile covers: ``length`` cells from ``start`` on, of ``whole``.

    ``first`` to ``last``, exclusive, are the cells that this tile alone accounts for. In pixels, all values are
    multiples of the strides.
    """

    start: int
    length: int
    whole: int
    first: int
    last: int

    @staticmethod
    def entire(length: int) -> Span:
        """Return the span of a whole axis."""
        return Span(0, length, length, 0, length)

    def at(self, cells: int) -> Span:
        """Return the same part of a feature map on which the tile has ``cells`` cells."""
        stride = self.length // cells
        return Span(*(pixels // stride for pixels in (self.start, self.length, self.whole, self.first, self.last)))


@dataclass
class Averages:
    """Averages over the whole image, in the order in which the network asks for them.

    ``known`` are passed to each tile. Without any, the tile uses its own averages. ``found`` are the sums over the
    tiles so far. Once their number ``expected`` is known, a tile that has added to all of them ends with `StopForward`.
    """

    known: list[Tensor] = field(default_factory=list)
    found: list[Tensor] = field(default_factory=list)
    expected: int | None = None

    def renew(self) -> None:
        """Move ``found`` to ``known``."""
        self.known, self.found = self.found, []


class StopForward(Exception):
    """Signal that a tile has contributed to every average, so the rest of the network need not run."""


# Contribution of a tile to a whole map, from (features, cells, rows, columns); its weights along one axis
AddUp = Callable[[Tensor, int, Span, Span], Tensor]
Weights = Callable[[Span, int, Tensor], Tensor]


@dataclass
class Tile:
    """Current part of the image, in pixels, and the averages over the whole image."""

    rows: Span
    columns: Span
    averages: Averages
    gather: bool
    calls: int = 0

    def average(self, features: Tensor, cells: int) -> Tensor | None:
        """Return the averages of the whole image in cells x cells parts (N, C, cells, cells), None while unknown."""
        return self._of_whole(average, features, cells)

    def downsample(self, features: Tensor, cells: int) -> Tensor | None:
        """Return the whole image interpolated at cells x cells places (N, C, cells, cells), None while unknown."""
        return self._of_whole(downsample, features, cells)

    def _of_whole(self, add_up: AddUp, features: Tensor, cells: int) -> Tensor | None:
        call, averages = self.calls, self.averages
        self.calls += 1
        if self.gather:
            share = add_up(features, cells, self.rows.at(features.shape[-2]), self.columns.at(features.shape[-1]))
            if call == len(averages.found):
                averages.found.append(share)
            else:
                averages.found[call] += share
            if self.calls == averages.expected:
                raise StopForward
        return averages.known[call].to(features.dtype) if averages.known else None

    def stretch(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return this tile's part (N, C, H, W) of a map (N, C, h, w) that stretches over the whole image."""
        return _stretch(_stretch(features, -2, self.rows.at(size[0])), -1, self.columns.at(size[1]))


_here = threading.local()


def current() -> Tile | None:
    """Return the tile of this thread, None for a whole image. Traced graphs are always for whole images."""
    if is_traced():
        return None
    tile: Tile | None = getattr(_here, "tile", None)
    return tile


@contextmanager
def working_on(tile: Tile) -> Iterator[None]:
    _here.tile = tile
    try:
        yield
    finally:
        _here.tile = None


def average(features: Tensor, cells: int, rows: Span, columns: Span) -> Tensor:
    """Compute a tile's share of the averages of cells x cells parts, (N, C, H, W) -> (N, C, cells, cells), in float32.

    It sums the cells of the map that this tile alone accounts for, divided by the number of all cells.
    """
    return _weighted(_averaging, features, cells, rows, columns)


def downsample(features: Tensor, cells: int, rows: Span, columns: Span) -> Tensor:
    """Compute a tile's share of the map at cells x cells places, (N, C, H, W) -> (N, C, cells, cells), in float32.

    Bilinear with ``align_corners=False``, over the cells of the map that this tile alone accounts for.
    """
    return _weighted(_interpolating, features, cells, rows, columns)


def _weighted(weights: Weights, features: Tensor, cells: int, rows: Span, columns: Span) -> Tensor:
    kind = features.device.type
    rounds = kind != "meta" and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if rounds else nullcontext():  # rounded weights would not add up to one
        features = features.float()
        # four dimensions: with two, `matmul` folds the others and tracers conclude that some sizes are impossible
        by_rows, by_columns = (weights(span, cells, features)[None, None] for span in (rows, columns))
        return by_rows @ features @ by_columns.transpose(-2, -1)


def _averaging(span: Span, cells: int, like: Tensor) -> Tensor:
    """Compute the weights (cells, length) of the tile's rows in each adaptive average over the whole."""
    # on the whole map, cell i has the positions from floor(i whole / cells) up to ceil((i + 1) whole / cells)
    position = cells * torch.arange(span.whole, device=like.device)
    cell = span.whole * torch.arange(cells, device=like.device)[:, None]
    inside = ((position + cells > cell) & (position < cell + span.whole)).to(like.dtype)
    return _own(inside / inside.sum(dim=1, keepdim=True), span)


def _interpolating(span: Span, cells: int, like: Tensor) -> Tensor:
    """Compute the weights (cells, length) of the tile's rows in a linear interpolation at ``cells`` places."""
    place = (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) * (span.whole / cells) - 0.5
    distance = torch.arange(span.whole, device=like.device) - place.clamp(0, span.whole - 1)[:, None]
    return _own((1 - distance.abs()).clamp(min=0), span)


def _own(weights: Tensor, span: Span) -> Tensor:
    """Select the tile's rows from weights (cells, whole), zero for rows that another tile accounts for."""
    if span.length == span.whole:
        return weights
    weights[:, : span.first] = weights[:, span.last :] = 0
    return weights[:, span.start : span.start + span.length]


def _stretch(features: Tensor, dim: int, span: Span) -> Tensor:
    """Interpolate a map of the whole linearly along ``dim`` (``align_corners=False``) and return the span of it."""
    cells = features.shape[dim]
    # in float64, which not every device has: a tile must match the whole's grid to a small part of a pixel
    place = torch.arange(span.length, dtype=torch.float64) + span.start
    place = ((place + 0.5) * (cells / span.whole) - 0.5).clamp(0, cells - 1)
    before = place.long()
    share = (place - before).to(features.device, features.dtype)
    after = (before + 1).clamp(max=cells - 1)
    near, far = (features.index_select(dim, index.to(features.device)) for index in (before, after))
    return near.lerp(far, share[:, None] if dim == -2 else share)
