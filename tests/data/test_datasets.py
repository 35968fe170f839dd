"""The layouts in which data sets lie on disk, and what is wrong with those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddsm_zoo.data.datasets import DatasetError, camvid, cityscapes, folder, open_dataset
from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.masks import CAMVID_COLORS, CAMVID_OBJECTS
from ddsm_zoo.labels import CAMVID, CITYSCAPES
from tests.support.data_sets import IDS, IMAGE, SIZE, expect_one_line, painted, write, write_labels

# --- layouts --------------------------------------------------------------------------------------------------


def test_camvid_with_index_labels(segnet: Path) -> None:
    void = np.where(IDS == 4, 11, IDS).astype(np.uint8)
    write(segnet / "trainannot/a.png", void)
    dataset = open_dataset(f"camvid:{segnet}", "train")
    assert [pair.name for pair in dataset.pairs] == ["a", "b"]
    assert dataset.labels == CAMVID
    image, mask = dataset[0]
    assert image.dtype == torch.uint8
    assert mask.dtype == torch.int64
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), IMAGE)
    np.testing.assert_array_equal(mask.numpy(), np.where(IDS == 4, 255, IDS))
    assert torch.equal(dataset[-1][1], dataset[1][1])
    with pytest.raises(IndexError):
        dataset[2]


OBJECT_IDS = np.arange(48).reshape(SIZE) % 32
GROUPED = np.array([255 if group is None else CAMVID.names.index(group) for *_, group in CAMVID_OBJECTS])[OBJECT_IDS]
COLORED = painted(OBJECT_IDS, [color for _, color, _ in CAMVID_OBJECTS])


def test_camvid_with_colors_in_split_folders(tmp_path: Path) -> None:
    write(tmp_path / "val/x.png", IMAGE)
    write(tmp_path / "val_labels/x_L.png", COLORED)
    dataset = camvid(tmp_path, "val")
    assert dataset.decode is CAMVID_COLORS
    np.testing.assert_array_equal(dataset[0][1].numpy(), GROUPED)


@pytest.mark.parametrize(("stills", "labeled"), [("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels")])
def test_camvid_with_colors_and_lists(tmp_path: Path, stills: str, labeled: str) -> None:
    for name in ("x", "y", "z"):
        write(tmp_path / stills / f"{name}.png", IMAGE)
        write(tmp_path / labeled / f"{name}_L.png", COLORED)
    (tmp_path / "train.txt").write_text("z\r\n\nx.png\n")
    (tmp_path / "val.txt").write_text("/somewhere/val/y.png /somewhere/valannot/y.png\n")
    assert [pair.name for pair in camvid(tmp_path, "train").pairs] == ["x", "z"]
    dataset = camvid(tmp_path, "val")
    assert [pair.name for pair in dataset.pairs] == ["y"]
    np.testing.assert_array_equal(dataset[0][1].numpy(), GROUPED)
    expect_one_line(lambda: camvid(tmp_path, "test"), "'test'", "train, val")
    (tmp_path / "test.txt").write_text("w\n")
    expect_one_line(lambda: camvid(tmp_path, "test"), "test.txt", "'w'")


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "both"])
def test_cityscapes(tmp_path: Path, kind: str) -> None:
    for city, name in (("ulm", "ulm_000000_000019"), ("bonn", "bonn_000001_000019")):
        write(tmp_path / f"leftImg8bit/val/{city}/{name}_leftImg8bit.png", IMAGE)
        target = tmp_path / f"gtFine/val/{city}"
        if kind != "labelTrainIds":
            write(target / f"{name}_gtFine_labelIds.png", np.full(SIZE, 7, dtype=np.uint8))
        if kind != "labelIds":
            write(
                target / f"{name}_gtFine_labelTrainIds.png",
                np.array([[0, 18, 255, 7]], dtype=np.uint8).repeat(6, 0).repeat(2, 1),
            )
    dataset = open_dataset(f"cityscapes:{tmp_path}", "val")
    assert [pair.name for pair in dataset.pairs] == ["bonn_000001_000019", "ulm_000000_000019"]
    assert dataset.labels == CITYSCAPES
    assert dataset[0][1].unique().tolist() == ([0, 7, 18, 255] if kind == "labelTrainIds" else [0])
    expect_one_line(lambda: cityscapes(tmp_path, "train"), "'train'", "splits val")


def test_folder_with_ids_palette_images_and_colors(custom: Path) -> None:
    palette = [(9, 8, 7), (250, 0, 3), (1, 2, 3)]
    write_labels(custom, palette=palette, ignore_index=200)
    ids = IDS % 3
    ids[0, 0] = 200
    indexed = Image.fromarray(ids)
    indexed.putpalette([7, 7, 7] * 256)
    for name in ("indexed", "gray", "color"):
        write(custom / f"images/val/{name}.jpg", IMAGE)
    (custom / "masks/val").mkdir()
    indexed.save(custom / "masks/val/indexed.png")
    write(custom / "masks/val/gray.png", ids)
    write(custom / "masks/val/color.png", painted(IDS % 3, palette))
    dataset = open_dataset(f"folder:{custom}", "val")
    assert dataset.labels.names == ("road", "car", "sky")
    assert dataset.labels.palette == tuple(palette)
    assert dataset.labels.ignore_index == 200
    expected = {"indexed": ids, "gray": ids, "color": IDS % 3}
    for index, pair in enumerate(dataset.pairs):
        np.testing.assert_array_equal(dataset[index][1].numpy(), expected[pair.name])


def test_folder_without_palette_has_distinct_colors(custom: Path) -> None:
    (custom / "images/train/.hidden.png").write_bytes(b"")
    (custom / "images/train/notes.txt").write_text("not an image")
    dataset = folder(custom, "train")
    assert len(dataset) == 1
    assert len(set(dataset.labels.palette)) == 3


def test_folder_of_a_single_class_has_masks_of_background_and_class(custom: Path) -> None:
    (custom / "labels.json").write_text('{"names": ["crack"], "palette": [[200, 10, 20]]}')
    ids = np.where(IDS == 10, 255, IDS > 4).astype(np.uint8)
    write(custom / "masks/train/a.png", ids)
    dataset = folder(custom, "train")
    assert dataset.labels.names == ("crack",)
    np.testing.assert_array_equal(dataset[0][1].numpy(), ids)
    write(custom / "masks/train/a.png", painted((ids == 1).astype(int), [(0, 0, 0), (200, 10, 20)]))
    np.testing.assert_array_equal(folder(custom, "train")[0][1].numpy(), ids == 1)


def test_folder_with_more_classes_than_a_byte_holds(custom: Path) -> None:
    write_labels(custom, names=[f"class {index}" for index in range(400)], ignore_index=1000)
    write(custom / "masks/train/a.png", np.where(IDS == 0, 1000, IDS.astype(np.uint16) + 300).astype(np.uint16))
    assert folder(custom, "train")[0][1].unique().tolist() == [*range(301, 311), 1000]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["labels.json"]),
        ("\xff\xfe", ["labels.json"]),
        ("[]", ["a list"]),
        ("{}", ["names"]),
        ('{"names": []}', ["at least one class"]),
        ('{"names": ["a", "a"]}', ["a more than once"]),
        ('{"names": ["a"], "colors": []}', ["'colors'", "palette"]),
        ('{"names": ["a"], "palette": [[1, 2]]}', ["palette[0]"]),
        ('{"names": ["a"], "palette": [[1, 2, 300]]}', ["[1, 2, 300]"]),
        ('{"names": ["a", "b"], "palette": [[1, 2, 3]]}', ["1 colors for 2"]),
        ('{"names": ["a", "b"], "palette": [[1, 2, 3], [1, 2, 3]]}', ["[1, 2, 3]", "a, b"]),
        ('{"names": ["a", "b"], "ignore_index": 1}', ["ignore_index 1"]),
        ('{"names": "ab"}', ["names"]),
    ],
)
def test_label_files_that_cannot_be_used(custom: Path, content: str, parts: list[str]) -> None:
    (custom / "labels.json").write_bytes(content.encode("latin-1"))
    expect_one_line(lambda: folder(custom, "train"), "labels.json", *parts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["names", "palette", "ignore_index", "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_label_file_is_read_or_refused(custom: Path, content: object) -> None:
    (custom / "labels.json").write_text(json.dumps(content))
    try:
        folder(custom, "train")
        message = ""
    except DatasetError as error:
        message = str(error)
    assert "\n" not in message


# --- bad data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "camvid",
        "camvid:",
        "camvld:/data",
        "/data/camvid",
        "folder",
        "scenes:",
        "scenes:0",
        "scenes:-1",
        "scenes:x",
        "scenes:²",
    ],
)
def test_specs_that_name_no_data_set(spec: str) -> None:
    expect_one_line(lambda: open_dataset(spec, "train"), repr(spec), "expected")


def test_misspelt_kind_is_suggested() -> None:
    expect_one_line(lambda: open_dataset("citiscapes:/data", "train"), "did you mean cityscapes:ROOT?")


@pytest.mark.parametrize("kind", ["camvid", "cityscapes", "folder"])
def test_missing_and_empty_roots(tmp_path: Path, kind: str) -> None:
    expect_one_line(lambda: open_dataset(f"{kind}:{tmp_path / 'absent'}", "train"), "absent", "does not exist")
    if kind == "folder":
        expect_one_line(lambda: open_dataset(f"{kind}:{tmp_path}", "train"), "labels.json", "missing")
        write_labels(tmp_path)
    expect_one_line(lambda: open_dataset(f"{kind}:{tmp_path}", "train"), str(tmp_path), "'train'", "expected")


def test_empty_split_names_the_others(segnet: Path) -> None:
    (segnet / "test").mkdir()
    (segnet / "testannot").mkdir()
    for split in ("test", "vall"):
        expect_one_line(lambda split=split: camvid(segnet, split), repr(split), "splits train, val")


def test_image_without_mask(segnet: Path) -> None:
    (segnet / "trainannot/b.png").unlink()
    expect_one_line(lambda: camvid(segnet, "train"), "b.png", "no mask", "trainannot/NAME.png", "1 of 2")


def test_two_images_of_one_name(custom: Path) -> None:
    write(custom / "images/train/a.jpg", IMAGE)
    expect_one_line(lambda: folder(custom, "train"), "a.jpg", "a.png", "same name")


def test_mask_of_another_size(segnet: Path) -> None:
    write(segnet / "trainannot/a.png", IDS[:, :5])
    expect_one_line(lambda: camvid(segnet, "train")[0], "trainannot/a.png", "5 x 6", "8 x 6")


def test_colors_where_ids_are_expected_and_the_reverse(segnet: Path) -> None:
    write(segnet / "trainannot/a.png", IMAGE)
    expect_one_line(lambda: camvid(segnet, "train")[0], "trainannot/a.png", "RGB", "expected single-channel ids")
    write(segnet / "other/x.png", IMAGE)
    write(segnet / "other_labels/x_L.png", IDS)
    expect_one_line(lambda: camvid(segnet, "other")[0], "x_L.png", "expected RGB colors")


def test_values_outside_the_classes(custom: Path) -> None:
    write(custom / "masks/train/a.png", IDS)
    expect_one_line(lambda: folder(custom, "train")[0], "masks/train/a.png", "id 3", "0 to 2, 255", "row 0, column 3")
    write_labels(custom, palette=[(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    write(custom / "masks/train/a.png", np.stack([IDS] * 3, axis=-1))
    expect_one_line(lambda: folder(custom, "train")[0], "color (3, 3, 3)", "3 colors")


def test_damaged_files_are_named(segnet: Path) -> None:
    (segnet / "train/a.png").write_bytes(b"")
    expect_one_line(lambda: camvid(segnet, "train")[0], "train/a.png", "is empty", kind=ImageError)
    (segnet / "trainannot/b.png").write_bytes((segnet / "trainannot/b.png").read_bytes()[:50])
    expect_one_line(lambda: camvid(segnet, "train")[1], "trainannot/b.png", "truncated", kind=ImageError)
