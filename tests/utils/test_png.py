"""PNG files written band by band, read by Pillow."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddsm_zoo.utils.png import write_png


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 40),
    st.sampled_from([(), (3,)]),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32),
)
def test_bands_of_any_height_come_back_as_one_picture(
    heights: list[int], width: int, channels: tuple[int, ...], dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if channels:
        dtype = np.uint8  # Pillow reads no RGB of 16 bits
    bands = [rng.integers(0, np.iinfo(dtype).max, (height, width, *channels), dtype, True) for height in heights]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        write_png(path, iter(bands))
        with Image.open(path) as picture:
            picture.verify()  # the checksum of every chunk
        with Image.open(path) as picture:
            assert picture.mode == ("RGB" if channels else "L" if dtype is np.uint8 else "I;16")
            assert np.array_equal(np.asarray(picture), np.concatenate(bands))


def test_large_flat_areas_are_small_files(tmp_path: Path) -> None:
    write_png(tmp_path / "flat.png", (np.full((100, 1000), 7, np.uint8) for _ in range(10)))
    assert (tmp_path / "flat.png").stat().st_size < 10_000  # a hundredth of the pixels
