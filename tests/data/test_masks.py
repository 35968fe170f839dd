"""What is stored in a mask file becomes class ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ddsm_zoo.data.mask_files import read_stored
from ddsm_zoo.data.masks import CAMVID_IDS, CAMVID_OBJECTS, CITYSCAPES_LABEL_IDS, MaskDecoder
from ddsm_zoo.labels import CAMVID, CITYSCAPES
from tests.support.data_sets import expect_one_line
from tests.support.deep_images import write_png


@given(
    st.dictionaries(st.integers(0, 65535), st.integers(-1, 300), min_size=1, max_size=20),
    hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5)),
    st.data(),
)
def test_ids_decode_as_a_dictionary_would(table: dict[int, int], stored: np.ndarray, data: st.DataObject) -> None:
    known = data.draw(hnp.arrays(np.uint16, stored.shape, elements=st.sampled_from(sorted(table))))
    stored = np.where(data.draw(hnp.arrays(np.bool_, stored.shape)), known, stored)
    decode = MaskDecoder(ids=table)
    if all(value in table for value in stored.flat):
        assert decode(stored, Path("m.png")).tolist() == [[table[value] for value in row] for row in stored.tolist()]
    else:
        first = next(value for value in stored.flat if value not in table)
        expect_one_line(lambda: decode(stored, Path("m.png")), "m.png", f"id {first}, expected")


colors = st.tuples(*[st.integers(0, 255)] * 3)


@given(st.dictionaries(colors, st.integers(0, 300), min_size=1, max_size=12), st.data())
def test_colors_decode_as_a_dictionary_would(table: dict[tuple[int, int, int], int], data: st.DataObject) -> None:
    pixels = data.draw(st.lists(st.sampled_from(sorted(table)) | colors, min_size=1, max_size=12))
    stored = np.array([pixels], dtype=np.uint8)
    decode = MaskDecoder(colors=table)
    unknown = [color for color in pixels if color not in table]
    if not unknown:
        assert decode(stored, Path("m.png")).tolist() == [[table[color] for color in pixels]]
    else:
        expect_one_line(lambda: decode(stored, Path("m.png")), "m.png", f"color {unknown[0]}, expected")


def test_camvid_objects_are_grouped_as_published() -> None:
    grouped: dict[str | None, set[str]] = {}
    for name, _, group in CAMVID_OBJECTS:
        grouped.setdefault(group, set()).add(name)
    assert set(grouped) == {*CAMVID.names, None}
    assert grouped["Building"] == {"Building", "Wall", "Bridge", "Tunnel", "Archway"}
    assert grouped["Car"] == {"Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"}
    assert grouped["Pedestrian"] == {"Pedestrian", "Child", "CartLuggagePram", "Animal"}
    assert grouped["Pavement"] == {"Sidewalk", "ParkingBlock", "RoadShoulder"}
    assert grouped["SignSymbol"] == {"SignSymbol", "Misc_Text", "TrafficLight"}
    assert grouped[None] == {"Void"}
    assert len({color for _, color, _ in CAMVID_OBJECTS}) == len(CAMVID_OBJECTS) == 32
    # the object that a class is named for has the class's color, where there is one of that name
    by_name = {name: color for name, color, _ in CAMVID_OBJECTS}
    for name, color in zip(CAMVID.names, CAMVID.palette, strict=True):
        assert by_name.get(name, color) == color


def test_camvid_ids_know_void_and_nothing_above() -> None:
    stored = np.array([[0, 10, 11, 255]], dtype=np.uint8)
    assert CAMVID_IDS(stored, Path("m.png")).tolist() == [[0, 10, 255, 255]]
    expect_one_line(
        lambda: CAMVID_IDS(np.array([[3, 42]], dtype=np.uint8), Path("m.png")),
        "m.png holds id 42, expected 0 to 11, 255 at row 0, column 1",
    )


def test_cityscapes_label_ids() -> None:
    # the label ids of road, pole, sky, person, bicycle; and of unlabeled, parking, caravan
    stored = np.array([[7, 17, 23, 24, 33, 0, 9, 29]], dtype=np.uint8)
    names = ["road", "pole", "sky", "person", "bicycle"]
    assert CITYSCAPES_LABEL_IDS(stored, Path("m.png")).tolist() == [
        [CITYSCAPES.names.index(name) for name in names] + [255] * 3
    ]
    expect_one_line(lambda: CITYSCAPES_LABEL_IDS(np.array([[34]]), Path("m.png")), "id 34, expected 0 to 33")


def _write_pgm(path: Path, ids: np.ndarray, top: int) -> Path:
    path.write_bytes(f"P5 {ids.shape[1]} {ids.shape[0]} {top}\n".encode() + ids.astype(np.uint8).tobytes())
    return path


FEW_BITS: dict[str, tuple[Callable[[Path, np.ndarray], Path], int]] = {
    "PNG of 2 bits": (lambda path, ids: write_png(path, ids, bits=2), 3),
    "PNG of 4 bits": (lambda path, ids: write_png(path, ids, bits=4), 15),
    "PGM up to 2": (lambda path, ids: _write_pgm(path, ids, 2), 2),
    "PGM up to 11": (lambda path, ids: _write_pgm(path, ids, 11), 11),
}


@pytest.mark.parametrize("form", FEW_BITS)
def test_files_of_few_bits_hold_the_ids_themselves(tmp_path: Path, form: str) -> None:
    """Pillow scales these values to 255, as for pictures."""
    write, top = FEW_BITS[form]
    ids = np.array([[0, 1, 2], [2, 2, 0]])
    decode = MaskDecoder(ids={0: 5, 1: 6, 2: 7, 255: 255})
    np.testing.assert_array_equal(decode.read(write(tmp_path / "m", ids)), ids + 5)
    every = np.array([[0, top]])  # white, but all classes fit
    plain = MaskDecoder(ids=dict.fromkeys(range(top + 1), 3))
    np.testing.assert_array_equal(plain.read(write(tmp_path / "n", every)), 3)
    white = MaskDecoder(ids={0: 0, 255: 1})
    np.testing.assert_array_equal(white.read(write(tmp_path / "w", every)), [[0, 1]])


def test_values_that_only_scaling_reaches_are_ids_where_they_are_known(tmp_path: Path) -> None:
    """A program that shrinks a mask of the ids 0 and 17 stores 0 and 1, of 4 bits."""
    shrunk = write_png(tmp_path / "m.png", np.array([[0, 1]]), bits=4)
    np.testing.assert_array_equal(MaskDecoder(ids={value: value for value in range(20)}).read(shrunk), [[0, 17]])
    np.testing.assert_array_equal(MaskDecoder(ids={0: 0, 17: 1}).read(shrunk), [[0, 1]])
    assert read_stored(shrunk).top == 15
    expect_one_line(lambda: MaskDecoder(ids={0: 0}).read(shrunk), "holds id 17")
