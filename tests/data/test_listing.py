"""Files in whole folders, their names, and the masks that fit them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddsm_zoo.data.listing import images_in, pair_masks


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_folders_are_searched_whole(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "site/a.PNG", "site/deep/c.tif", "notes.txt")
    assert list(images_in(tmp_path).files) == ["b", "site/a", "site/deep/c"]
    assert images_in(tmp_path / "nowhere").files == {}


def test_what_systems_and_notebooks_leave_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "@eaDir/a.png")
    assert list(images_in(tmp_path).files) == ["a"]


def test_pictures_that_are_not_read_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.heic", "c.npy", "sub/d.tga", "e.txt", "f.json", "g", ".h.npy")
    assert [file.name for file in images_in(tmp_path).left_out] == ["b.heic", "c.npy", "d.tga"]


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.png", "elsewhere/b.png")
    (tmp_path / "data/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    assert list(images_in(tmp_path / "data").files) == ["a", "more/b"]


def test_names_that_files_share(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "x/a.png")
    found = images_in(tmp_path)
    assert list(found.files) == ["a", "x/a"]
    assert [[file.name for file in pair] for pair in found.twins] == [["a.jpg", "a.png"]]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("s0", "s0_mask"), ("s0", "s0_L"), ("s0", "s0_seg"), ("s0", "s0_gt"), ("s0", "s0_label"), ("s0", "s0-mask"),
        ("s0", "s0.mask"), ("s0", "s0_labelIds"), ("s0", "mask_s0"), ("s0", "s0_Segmentation"), ("s0", "s0_GT"),
        ("img_7", "mask_7"), ("7_sat", "7_mask"), ("x_leftImg8bit", "x_gtFine_labelIds"), ("img_7", "7"),
        ("site/s0", "site/s0_mask"), ("site/s0", "s0"), ("s0", "site/s0_mask"),
    ],
)  # fmt: skip
def test_masks_with_words_in_their_names(image: str, mask: str) -> None:
    found = pair_masks([image], {mask: Path("m")})
    assert found.masks == {image: Path("m")}
    assert found.guessed == (image,)


def test_equal_names_come_first() -> None:
    names = ["a", "a_L", "a_R"]
    masks = {name: Path(name) for name in names}
    assert pair_masks(names, masks) == (masks, (), ())


def test_no_mask_is_taken_where_several_fit() -> None:
    found = pair_masks(["a", "b"], {"a_mask": Path("1"), "a_gt": Path("2"), "b_mask": Path("3")})
    assert found.masks == {"b": Path("3"), "a_mask": Path("1"), "a_gt": Path("2")}
    assert found.rivals == ((Path("1"), Path("2")),)


def test_masks_of_other_folders_and_names_fit_no_image() -> None:
    masks = {"b/s0": Path("1"), "s1_overlay": Path("2")}
    assert pair_masks(["a/s0", "s1"], masks) == (masks, (), ())


@pytest.mark.parametrize(
    ("image", "mask"),
    [("gr\u00fcn 1", "gru\u0308n 1"), ("IMG_7", "img_7"), ("S/a", "s/A"), ("gr\u00fcn", "gru\u0308n_mask")],
)
def test_names_that_differ_in_case_or_in_the_bytes_of_accents(image: str, mask: str) -> None:
    assert pair_masks([image], {mask: Path("m")}) == ({image: Path("m")}, (image,), ())
    both = {image: Path("1"), mask: Path("2")}
    assert pair_masks([image, mask], both) == (both, (), ())
