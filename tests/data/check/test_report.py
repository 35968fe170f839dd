"""The label doctor: data sets with one thing wrong, and what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ddsm_zoo.data.check.report import check_data, require_sound
from ddsm_zoo.data.datasets import open_dataset
from ddsm_zoo.data.masks import DatasetError
from tests.support.data_sets import expect_one_line, write
from tests.support.errors import raises
from tests.support.label_doctor import IDS, NAMES, SIZE, build, check, found, four, picture, text_of

# --- sound data -----------------------------------------------------------------------------------------------


def test_sound_data_has_no_problems(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    seen: list[tuple[int, int]] = []
    report = check_data(f"folder:{root}", progress=lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert report.verdict() == f"folder:{root} has no problems"
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@settings(max_examples=30)
@given(st.lists(hnp.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 255])), min_size=1, max_size=4))
def test_the_histogram_counts_pixels_and_images(
    tmp_path_factory: pytest.TempPathFactory, masks: list[np.ndarray]
) -> None:
    root = build(tmp_path_factory.mktemp("data"), {f"train/{index}": mask for index, mask in enumerate(masks)})
    summary = check(root).splits["train"]
    for class_id in range(3):
        assert summary.pixels[class_id] == sum(int((mask == class_id).sum()) for mask in masks)
        assert summary.occurs[class_id] == sum(class_id in mask for mask in masks)
    assert summary.ignored == sum(int((mask == 255).sum()) for mask in masks)
    labeled = sum(summary.pixels)
    assert summary.shares() == [count / labeled if labeled else 0 for count in summary.pixels]


def test_colors_and_the_ids_they_stand_for_have_one_histogram(tmp_path: Path) -> None:
    palette = [(9, 8, 7), (250, 0, 3), (1, 2, 3)]
    plain = check(build(tmp_path / "ids", four())).splits
    assert check(build(tmp_path / "rgb", four(np.array(palette, np.uint8)[IDS]), palette=palette)).splits == plain


@settings(max_examples=60)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        (3, 4),
        elements=st.sampled_from([0, 1, 2, 3, 7, 255]) | st.integers(0, 255),
    )
    | hnp.arrays(np.uint8, (3, 4, 3), elements=st.sampled_from([0, 128, 255]))
)
@pytest.mark.parametrize("quick", [True, False])
def test_what_passes_can_be_read(tmp_path_factory: pytest.TempPathFactory, quick: bool, mask: np.ndarray) -> None:
    root = build(tmp_path_factory.mktemp("data"), {"train/a": mask})
    report = check(root, quick=quick)
    if not report.errors:
        open_dataset(f"folder:{root}", "train")[0]
    unreadable = {"unknown-id", "rgb-mask", "smeared-mask"} & {problem.kind for problem in report.errors}
    if unreadable:
        expect_one_line(lambda: open_dataset(f"folder:{root}", "train")[0], "a.png")


# --- files ----------------------------------------------------------------------------------------------------


def test_pairs_without_partner(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    (root / "masks/train/b.png").unlink()
    write(root / "masks/train/z.png", IDS)
    report = check(root)
    assert found(report) == {("train", "missing-mask"): ("error", 1), ("train", "unused-mask"): ("warning", 1)}
    assert text_of(report, "missing-mask") == (
        "train: no mask for 1 of 3 images, expected masks/train/NAME.png: images/train/b.png"
    )
    assert "masks/train/z.png" in text_of(report, "unused-mask")


def test_names_that_occur_twice_or_are_only_listed(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write(tmp_path / f"images/{name}.png", picture(ord(name)))
        write(tmp_path / f"labels/{name}_L.png", np.full((*SIZE, 3), 128, np.uint8))
    write(tmp_path / "images/x.bmp", picture(3))
    (tmp_path / "train.txt").write_text("x\nnowhere\n")
    (tmp_path / "val.txt").write_text("y\n")
    report = check(tmp_path, "camvid")
    assert "names in train.txt: 'nowhere'" in text_of(report, "missing-image")
    assert "images/x.bmp and images/x.png" in text_of(report, "same-name")
    assert report.errors


def test_splits_other_than_train_and_val_may_lack_labels(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    write(root / "images/test/e.png", picture(9))
    assert found(check(root)) == {("test", "missing-mask"): ("warning", 1)}
    write(root / "masks/test/e.png", np.full(SIZE, 255, np.uint8))
    assert found(check(root)) == {("test", "void-mask"): ("warning", 1)}


def test_a_split_that_training_would_miss(tmp_path: Path) -> None:
    root = build(tmp_path, {"train/a": IDS, "other/b": IDS})
    report = check(root)
    assert found(report) == {("val", "missing-split"): ("warning", 0)}
    assert "this has train, other" in text_of(report, "missing-split")
    expect_one_line(lambda: check_data(f"folder:{root}", ["val"]), "'val'", "splits train, other")


@pytest.mark.parametrize("content", [b"", b"no image", None])
@pytest.mark.parametrize("quick", [True, False])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, quick: bool) -> None:
    root = build(tmp_path, four())
    for kind in ("images", "masks"):
        path = root / kind / "train/b.png"
        path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    report = check(root, quick=quick)
    assert found(report) == {("train", "damaged-image"): ("error", 1), ("train", "damaged-mask"): ("error", 1)}
    assert "images/train/b.png (is " in text_of(report, "damaged-image")
    assert report.splits["train"].occurs == (2, 2, 2)


def test_damage_behind_the_header_is_found_by_the_full_check(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    path = root / "images/train/b.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert found(check(root)) == {("train", "damaged-image"): ("error", 1)}
    assert found(check(root, quick=True)) == {}


@pytest.mark.parametrize("quick", [True, False])
def test_masks_of_another_size(tmp_path: Path, quick: bool) -> None:
    root = build(tmp_path, four())
    write(root / "masks/train/b.png", IDS[:, :5])
    report = check(root, quick=quick)
    assert found(report) == {("train", "size-mismatch"): ("error", 1)}
    assert "masks/train/b.png (5 x 12, its image 16 x 12)" in text_of(report, "size-mismatch")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("quick", [True, False])
def test_photos_that_their_metadata_turns_fit_upright_masks(tmp_path: Path, suffix: str, quick: bool) -> None:
    root = build(tmp_path, four())
    (root / "images/train/b.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(1, (SIZE[1], SIZE[0]))).save(root / f"images/train/b.{suffix}", exif=exif)
    assert found(check(root, quick=quick)) == {}


# --- pictures in several splits -------------------------------------------------------------------------------


def test_pictures_in_several_splits(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    for name in ("d", "e"):
        write(root / f"masks/val/{name}.png", IDS)
    write(root / "images/val/e.bmp", picture(1))  # the pixels of train/b in another file
    report = check(root)
    assert found(report) == {("val", "leak"): ("error", 1)}
    assert "in train for 1 of 2 images" in text_of(report, "leak")
    assert "images/val/e.bmp = images/train/b.png" in text_of(report, "leak")
    assert found(check(root, quick=True)) == {}
    write(root / "images/val/d.png", picture(2))
    assert found(check(root))["val", "leak"] == ("error", 2)
    # equal files are found without decoding them
    assert found(check(root, quick=True)) == {("val", "leak"): ("error", 1)}


def test_a_split_that_is_made_of_others_as_its_name_says(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        write(tmp_path / f"images/{name}.png", picture(ord(name)))
        write(tmp_path / f"labels/{name}_L.png", np.full((*SIZE, 3), 128, np.uint8))
    for split, names in {"train": "x", "val": "y", "trainval": "x\ny", "test": "z\nx"}.items():
        (tmp_path / f"{split}.txt").write_text(names)
    leaks = [problem for problem in check(tmp_path, "camvid").problems if problem.kind == "leak"]
    assert {(problem.split, problem.severity, problem.what.split()[5]) for problem in leaks} == {
        ("trainval", "warning", "train"),
        ("trainval", "warning", "val"),
        ("test", "error", "train"),
        ("trainval", "error", "test"),
    }


# --- everything at once ---------------------------------------------------------------------------------------


def test_all_problems_are_collected_and_equal_ones_counted(tmp_path: Path) -> None:
    masks = {f"train/{index:02}": IDS for index in range(12)} | {"val/x": IDS}
    root = build(tmp_path, masks, names=[*NAMES, "bird"])
    for index in range(5):
        write(root / f"masks/train/{index:02}.png", IDS + 40)
    write(root / "masks/train/05.png", IDS[:4])
    (root / "masks/train/06.png").unlink()
    (root / "images/train/07.png").write_bytes(b"")
    report = check(root)
    assert found(report) == {
        ("train", "missing-mask"): ("error", 1),
        ("train", "damaged-image"): ("error", 1),
        ("train", "size-mismatch"): ("error", 1),
        ("train", "unknown-id"): ("error", 5),
        ("train", "empty-class"): ("warning", 1),
        ("val", "empty-class"): ("warning", 1),
    }
    assert report.verdict().endswith(" has 4 errors and 2 warnings")
    text = text_of(report, "unknown-id")
    assert text.startswith("train: ids that stand for no class in 5 of 11 masks, expected 0 to 3, 255; ")
    assert "masks/train/00.png (40, 41, 42 on 100.0% of it, 192 pixels), masks/train/01.png" in text
    assert text.endswith(" and 2 more")
    assert "bird" in text_of(report, "empty-class")


def test_training_is_refused_in_the_same_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = build(tmp_path, four())
    require_sound(f"folder:{root}", ("train", "val"))
    require_sound("scenes:3", ("train", "val"))
    write(root / "masks/train/z.png", IDS)
    require_sound(f"folder:{root}", ("train", "val"))
    assert text_of(check(root), "unused-mask") in caplog.text
    write(root / "masks/train/b.png", IDS + 40)
    (only,) = check(root).errors
    expect_one_line(lambda: require_sound(f"folder:{root}", ("train", "val")), f"folder:{root} cannot be used: {only}")
    (root / "masks/train/a.png").write_bytes(b"")
    first, _ = check(root).errors
    expect_one_line(
        lambda: require_sound(f"folder:{root}", ("train", "val")), str(first), "1 more: ddsm-zoo check-data"
    )


@pytest.mark.parametrize(
    ("spec", "part"),
    [("scenes:3", "nothing to check"), ("camvit:x", "did you mean camvid:ROOT?"), ("folder:nowhere", "does not exist")],
)
def test_what_cannot_be_checked(spec: str, part: str) -> None:
    expect_one_line(lambda: check_data(spec), part)


def test_a_data_set_without_images(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"names": NAMES}))
    expect_one_line(lambda: check_data(f"folder:{tmp_path}"), "no images", "images/SPLIT/ and masks/SPLIT/")


def test_a_split_under_another_name_is_named(tmp_path: Path) -> None:
    """Where the layout fixes the names."""
    for seed, split in enumerate(("train", "Validation")):
        write(tmp_path / split / "a.png", picture(seed))
        write(tmp_path / f"{split}annot" / "a.png", IDS)
    assert text_of(check(tmp_path, "camvid"), "missing-split").endswith("; is Validation meant? Call its folders val")
    with raises(DatasetError, kind="missing-split") as error:
        require_sound(f"camvid:{tmp_path}", ["val"])
    assert "train, Validation" in str(error.value)
    assert str(error.value).endswith(" val")


def test_images_outside_of_splits_are_named_where_no_split_has_any(tmp_path: Path) -> None:
    root = build(tmp_path, {"a": IDS, "b": IDS})
    shutil.rmtree(root / "masks")
    with raises(DatasetError) as error:
        check(root)
    assert "; 2 of " in str(error.value)
    assert "images/a.png" in str(error.value)


def test_a_link_that_leads_nowhere_is_damage(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    (root / "masks" / "val" / "d.png").unlink()
    (root / "masks" / "val" / "d.png").symlink_to(root / "gone.png")
    assert "masks/val/d.png (is a link to a file that does not exist" in text_of(check(root), "damaged-mask")


def test_of_many_classes_that_never_occur_the_first_are_named(tmp_path: Path) -> None:
    root = build(tmp_path, four(), names=[f"c{index}" for index in range(100)])
    text = text_of(check(root), "empty-class")
    assert "no pixel of 97 of 100 classes" in text
    assert text.endswith("c25, c26 and 73 more")
