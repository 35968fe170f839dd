"""A tile's share of averages and of stretched maps, against the whole map done by torch at once."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ddsm_zoo.inference.tiling import Tiling
from ddsm_zoo.layers.common import average, downsample, stretch
from ddsm_zoo.layers.tiles import Averages, Span, StopForward, Tile, current, working_on
from tests.support.closeness import rounding_error

SIZES = st.tuples(st.integers(500, 1500), st.integers(500, 1500))
STRIDES = st.sampled_from([4, 8, 16, 32])


def tiles(size: tuple[int, int], averages: Averages, gather: bool = False) -> list[Tile]:
    tiling = Tiling(size=size, side=512, margin=128)
    pairs = itertools.product(tiling.spans(0), tiling.spans(1))
    return [Tile(rows, columns, averages, gather) for rows, columns in pairs]


def cells(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Of the picture's features, which cover it to the next multiple of 32."""
    return -(-size[0] // 32) * 32 // stride, -(-size[1] // 32) * 32 // stride


def part(tile: Tile, stride: int) -> tuple[slice, slice]:
    """Where the tile's cells lie on the whole map at ``stride``."""
    rows, columns = (
        slice(span.start // stride, (span.start + span.length) // stride) for span in (tile.rows, tile.columns)
    )
    return rows, columns


@given(SIZES, STRIDES, st.sampled_from([1, 2, 3, 6, 16]))
def test_the_shares_of_all_tiles_are_the_average_over_the_whole(size: tuple[int, int], stride: int, parts: int) -> None:
    features = torch.rand(1, 2, *cells(size, stride), generator=torch.Generator().manual_seed(0))
    # Tiles average in float32, first over rows and then over columns; the features are below 1.
    tolerance = rounding_error(sum(cells(size, stride)), 1.0)
    averages = Averages()
    for tile in tiles(size, averages, gather=True):
        rows, columns = part(tile, stride)
        with working_on(tile):
            own = average(features[..., rows, columns], parts)
        torch.testing.assert_close(own, F.adaptive_avg_pool2d(features[..., rows, columns], parts))
    averages.renew()
    expected = F.adaptive_avg_pool2d(features.double(), parts)
    torch.testing.assert_close(averages.known[0].double(), expected, atol=tolerance, rtol=0)
    with working_on(tiles(size, averages)[0]):
        assert torch.equal(average(features[..., :3, :3], parts), averages.known[0])


@given(SIZES, STRIDES, st.integers(1, 32))
def test_a_stretched_map_is_the_tiles_part_of_the_whole(size: tuple[int, int], stride: int, side: int) -> None:
    whole_map = torch.rand(1, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(whole_map, cells(size, stride), mode="bilinear", align_corners=False)
    for tile in tiles(size, Averages()):
        rows, columns = part(tile, stride)
        with working_on(tile):
            found = stretch(whole_map, (rows.stop - rows.start, columns.stop - columns.start))
        torch.testing.assert_close(found, expected[..., rows, columns], atol=1e-10, rtol=0)


def test_a_table_of_rows_stretches_along_them_alone() -> None:
    table = torch.rand(1, 3, 8, 1, dtype=torch.float64)
    tile = Tile(Span(512, 512, 1216, 640, 896), Span(0, 704, 704, 0, 704), Averages(), False)
    expected = F.interpolate(table, (304, 1), mode="bilinear", align_corners=False)
    with working_on(tile):
        torch.testing.assert_close(stretch(table, (128, 1)), expected[:, :, 128:256], atol=1e-10, rtol=0)


def test_a_tile_ends_when_it_has_given_all_that_is_expected() -> None:
    averages = Averages(expected=2)
    (tile,) = tiles((512, 512), averages, gather=True)
    features = torch.rand(1, 2, 16, 16)
    with working_on(tile):
        average(features, 1)
        with pytest.raises(StopForward):
            average(features, 2)
    assert len(averages.found) == 2
    assert current() is None


@given(SIZES, STRIDES, st.sampled_from([1, 4, 16, 40]))
def test_the_shares_of_all_tiles_are_the_whole_downsampled(size: tuple[int, int], stride: int, places: int) -> None:
    features = torch.rand(1, 2, *cells(size, stride), generator=torch.Generator().manual_seed(0))
    averages = Averages()
    for tile in tiles(size, averages, gather=True):
        rows, columns = part(tile, stride)
        with working_on(tile):
            downsample(features[..., rows, columns], places)
    averages.renew()
    expected = F.interpolate(features.double(), size=(places, places), mode="bilinear", align_corners=False)
    # On each axis a position of up to as many cells is rounded three times, half an epsilon each; from cell to cell the
    # features differ by less than 1. The weighted sum of four features fits into the rest.
    tolerance = rounding_error(2 * sum(cells(size, stride)), 1.0)
    for tile in tiles(size, averages):
        rows, columns = part(tile, stride)
        with working_on(tile):
            found = downsample(features[..., rows, columns], places)
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(downsample(features.double(), places), expected)
