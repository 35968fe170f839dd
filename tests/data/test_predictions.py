"""Which file is the prediction for which image, and what a file must hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddsm_zoo.data.check.palettes import PaletteCheck
from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.masks import CAMVID_IDS, DatasetError
from ddsm_zoo.data.predictions import find_predictions, read_prediction
from tests.support.errors import raises

NAMES = ["seq_1", "seq_1_left", "seq_2"]


def touch(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def test_suffixes_folders_and_other_files(tmp_path: Path) -> None:
    touch(tmp_path, "seq_1_ids.png", "seq_1_left.png", "deep/seq_2_pred_labelIds.PNG", "notes.txt", ".seq_2.png")
    touch(tmp_path, "seq_1_color.png", "seq_1_colour.png", "seq_1_overlay.png")
    found = find_predictions(tmp_path, NAMES)
    assert [file.name for file in found] == ["seq_1_ids.png", "seq_1_left.png", "seq_2_pred_labelIds.PNG"]


def test_images_whose_names_end_like_the_pictures_of_others(tmp_path: Path) -> None:
    """What `ddsm-zoo predict` writes for x and for x_color, and what another tool writes for x_overlay."""
    touch(tmp_path, *(f"{name}_{kind}.png" for name in ("x", "x_color") for kind in ("ids", "color", "overlay")))
    touch(tmp_path, "other/y_overlay.png")
    found = find_predictions(tmp_path, ["x", "x_color", "y_overlay"])
    assert [file.name for file in found] == ["x_ids.png", "x_color_ids.png", "y_overlay.png"]


PARTS = st.lists(st.text("ab1", min_size=1, max_size=2), min_size=1, max_size=4)


@given(st.lists(PARTS, min_size=1, max_size=5))
def test_the_longest_name_wins(names: list[list[str]]) -> None:
    """Whatever the names: with one file NAME_zz.png for each, everyone gets their own."""
    unique = sorted({"_".join(parts) for parts in names})
    with tempfile.TemporaryDirectory() as folder:
        touch(Path(folder), *(f"{name}_zz.png" for name in unique))
        assert [file.stem for file in find_predictions(folder, unique)] == [f"{name}_zz" for name in unique]


@pytest.mark.parametrize(
    ("files", "missing", "extra", "said"),
    [
        (["seq_1.png"], ["seq_1_left", "seq_2"], [], "2 of 3 images, first seq_1_left"),
        (["seq_1.png", "seq_1_left.png", "seq_2.png", "x.png"], [], ["x.png"], "x.png"),
        (["seq_1.png", "seq_1_left.png", "seqq_2.png"], ["seq_2"], ["seqq_2.png"], "is seqq_2 misnamed"),
        (["seq_1.png", "seq_1_left.png", "zz.png"], ["seq_2"], ["zz.png"], "NAME_ANYTHING.png"),
        ([], ["seq_1", "seq_1_left", "seq_2"], [], "3 of 3 images"),
    ],
)
def test_folders_that_do_not_fit(
    tmp_path: Path, files: list[str], missing: list[str], extra: list[str], said: str
) -> None:
    with raises(DatasetError, kind="predictions", path=tmp_path, got=extra, expected=missing) as error:
        find_predictions(touch(tmp_path, *files), NAMES)
    assert said in str(error.value)


def test_two_predictions_for_an_image(tmp_path: Path) -> None:
    with raises(DatasetError, kind="predictions", path=tmp_path, name="seq_1"):
        find_predictions(touch(tmp_path, "seq_1.png", "seq_1_ids.png"), NAMES)


def test_no_folder(tmp_path: Path) -> None:
    with raises(DatasetError, kind="predictions", path="nowhere"):
        find_predictions(tmp_path / "nowhere", NAMES)


TARGET = torch.tensor([[0, 1, 255], [2, 2, 255]])


def stored(path: Path, pixels: list[list[int]]) -> Path:
    Image.fromarray(np.array(pixels, np.uint8)).save(path)
    return path


def test_a_prediction_may_be_void_where_the_label_is(tmp_path: Path) -> None:
    path = stored(tmp_path / "p.png", [[0, 1, 11], [3, 2, 5]])
    ids = read_prediction(path, CAMVID_IDS, TARGET, 255, PaletteCheck())
    assert ids.tolist() == [[0, 1, 255], [3, 2, 5]]
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("pixels", "kind", "said"),
    [
        ([[0, 1], [2, 2]], "size-mismatch", "2 x 2"),
        ([[0, 1, 2], [11, 2, 2]], "predictions", "row 1, column 0"),
        ([[0, 1, 2], [77, 2, 2]], "unknown-id", "77"),
    ],
)
def test_predictions_that_do_not_fit_their_label(tmp_path: Path, pixels: list[list[int]], kind: str, said: str) -> None:
    with raises(DatasetError, kind=kind, path="p.png") as caught:
        read_prediction(stored(tmp_path / "p.png", pixels), CAMVID_IDS, TARGET, 255, PaletteCheck(), "; hint")
    assert said in str(caught.value)
    assert ("; hint" in str(caught.value)) == (kind != "size-mismatch")


def test_a_prediction_that_compression_has_changed(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "p.png", format="jpeg")
    with raises(DatasetError, kind="smeared-mask", path="p.png"):
        read_prediction(tmp_path / "p.png", CAMVID_IDS, TARGET, 255, PaletteCheck())


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_text("no image")
    with raises(ImageError, kind="image-format", path="p.png"):
        read_prediction(tmp_path / "p.png", CAMVID_IDS, TARGET, 255, PaletteCheck())


def test_names_in_another_case_or_with_other_bytes_for_accents(tmp_path: Path) -> None:
    touch(tmp_path, "X1.PNG", "gru\u0308n_pred.png")
    assert [file.name for file in find_predictions(tmp_path, ["x1", "gr\u00fcn"])] == ["X1.PNG", "gru\u0308n_pred.png"]
    with raises(DatasetError, kind="predictions", expected=["a/x1", "b/x1"]):
        find_predictions(tmp_path, ["a/x1", "b/x1"])


def test_arrays_in_place_of_images_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.npy", "b.npy")
    with raises(DatasetError, kind="predictions", expected=["a", "b"]) as error:
        find_predictions(tmp_path, ["a", "b"])
    assert "a.npy, expected PNG" in str(error.value)


def test_a_prediction_of_several_pages(tmp_path: Path) -> None:
    page = Image.fromarray(np.zeros((2, 3), np.uint8))
    page.save(tmp_path / "p.tif", save_all=True, append_images=[page])
    with raises(DatasetError, kind="predictions", path="p.tif"):
        read_prediction(tmp_path / "p.tif", CAMVID_IDS, TARGET, 255, PaletteCheck())
