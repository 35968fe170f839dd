from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ddsm_zoo.data.datasets import (
    DatasetError,
    MaskDecoder,
    Pair,
    SegmentationDataset,
    camvid,
    cityscapes,
    folder,
    open_dataset,
)
from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.masks import CAMVID_COLOURS, CAMVID_IDS, CAMVID_OBJECTS, CITYSCAPES_LABEL_IDS
from ddsm_zoo.labels import CAMVID, CITYSCAPES

SIZE = (6, 8)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
IDS = np.arange(48, dtype=np.uint8).reshape(SIZE) % 11


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_labels(root: Path, **content: object) -> None:
    (root / "labels.json").write_text(json.dumps({"names": ["road", "car", "sky"], **content}))


def painted(ids: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(colours, dtype=np.uint8)[ids]


def expect_one_line(call: Callable[[], object], *parts: str, kind: type[Exception] = DatasetError) -> None:
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture
def segnet(tmp_path: Path) -> Path:
    """CamVid as SegNet distributes it: two training images and one for validation."""
    for split, names in {"train": ("b", "a"), "val": ("c",)}.items():
        for name in names:
            write(tmp_path / split / f"{name}.png", IMAGE)
            write(tmp_path / f"{split}annot" / f"{name}.png", IDS)
    return tmp_path


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    write(tmp_path / "images/train/a.png", IMAGE)
    write(tmp_path / "masks/train/a.png", IDS % 3)
    write_labels(tmp_path)
    return tmp_path


# --- decoding -------------------------------------------------------------------------------------------------


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


colours = st.tuples(*[st.integers(0, 255)] * 3)


@given(st.dictionaries(colours, st.integers(0, 300), min_size=1, max_size=12), st.data())
def test_colours_decode_as_a_dictionary_would(table: dict[tuple[int, int, int], int], data: st.DataObject) -> None:
    pixels = data.draw(st.lists(st.sampled_from(sorted(table)) | colours, min_size=1, max_size=12))
    stored = np.array([pixels], dtype=np.uint8)
    decode = MaskDecoder(colours=table)
    unknown = [colour for colour in pixels if colour not in table]
    if not unknown:
        assert decode(stored, Path("m.png")).tolist() == [[table[colour] for colour in pixels]]
    else:
        expect_one_line(lambda: decode(stored, Path("m.png")), "m.png", f"colour {unknown[0]}, expected")


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
    assert len({colour for _, colour, _ in CAMVID_OBJECTS}) == len(CAMVID_OBJECTS) == 32
    # the object that a class is named for has the class's colour, where there is one of that name
    by_name = {name: colour for name, colour, _ in CAMVID_OBJECTS}
    for name, colour in zip(CAMVID.names, CAMVID.palette, strict=True):
        assert by_name.get(name, colour) == colour


def test_camvid_ids_know_void_and_nothing_above() -> None:
    stored = np.array([[0, 10, 11, 255]], dtype=np.uint8)
    assert CAMVID_IDS(stored, Path("m.png")).tolist() == [[0, 10, 255, 255]]
    expect_one_line(
        lambda: CAMVID_IDS(np.array([[3, 42]], dtype=np.uint8), Path("m.png")),
        "m.png holds id 42, expected 0 to 11, 255 at row 0, column 1",
    )


def test_cityscapes_label_ids() -> None:
    # the label ids of road, pole, sky, person, bicycle; and of unlabelled, parking, caravan
    stored = np.array([[7, 17, 23, 24, 33, 0, 9, 29]], dtype=np.uint8)
    names = ["road", "pole", "sky", "person", "bicycle"]
    assert CITYSCAPES_LABEL_IDS(stored, Path("m.png")).tolist() == [
        [CITYSCAPES.names.index(name) for name in names] + [255] * 3
    ]
    expect_one_line(lambda: CITYSCAPES_LABEL_IDS(np.array([[34]]), Path("m.png")), "id 34, expected 0 to 33")


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
COLOURED = painted(OBJECT_IDS, [colour for _, colour, _ in CAMVID_OBJECTS])


def test_camvid_with_colours_in_split_folders(tmp_path: Path) -> None:
    write(tmp_path / "val/x.png", IMAGE)
    write(tmp_path / "val_labels/x_L.png", COLOURED)
    dataset = camvid(tmp_path, "val")
    assert dataset.decode is CAMVID_COLOURS
    np.testing.assert_array_equal(dataset[0][1].numpy(), GROUPED)


@pytest.mark.parametrize(("stills", "labelled"), [("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels")])
def test_camvid_with_colours_and_lists(tmp_path: Path, stills: str, labelled: str) -> None:
    for name in ("x", "y", "z"):
        write(tmp_path / stills / f"{name}.png", IMAGE)
        write(tmp_path / labelled / f"{name}_L.png", COLOURED)
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


def test_folder_with_ids_palette_images_and_colours(custom: Path) -> None:
    palette = [(9, 8, 7), (250, 0, 3), (1, 2, 3)]
    write_labels(custom, palette=palette, ignore_index=200)
    ids = IDS % 3
    ids[0, 0] = 200
    indexed = Image.fromarray(ids)
    indexed.putpalette([7, 7, 7] * 256)
    for name in ("indexed", "grey", "colour"):
        write(custom / f"images/val/{name}.jpg", IMAGE)
    (custom / "masks/val").mkdir()
    indexed.save(custom / "masks/val/indexed.png")
    write(custom / "masks/val/grey.png", ids)
    write(custom / "masks/val/colour.png", painted(IDS % 3, palette))
    dataset = open_dataset(f"folder:{custom}", "val")
    assert dataset.labels.names == ("road", "car", "sky")
    assert dataset.labels.palette == tuple(palette)
    assert dataset.labels.ignore_index == 200
    expected = {"indexed": ids, "grey": ids, "colour": IDS % 3}
    for index, pair in enumerate(dataset.pairs):
        np.testing.assert_array_equal(dataset[index][1].numpy(), expected[pair.name])


def test_folder_without_palette_has_distinct_colours(custom: Path) -> None:
    (custom / "images/train/.hidden.png").write_bytes(b"")
    (custom / "images/train/notes.txt").write_text("not an image")
    dataset = folder(custom, "train")
    assert len(dataset) == 1
    assert len(set(dataset.labels.palette)) == 3


def test_folder_with_more_classes_than_a_byte_holds(custom: Path) -> None:
    write_labels(custom, names=[f"class {index}" for index in range(400)], ignore_index=1000)
    write(custom / "masks/train/a.png", np.where(IDS == 0, 1000, IDS.astype(np.uint16) + 300).astype(np.uint16))
    assert folder(custom, "train")[0][1].unique().tolist() == [*range(301, 311), 1000]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["labels.json"]),
        ("\xff\xfe", ["labels.json"]),
        ("[]", ["table"]),
        ("{}", ["names"]),
        ('{"names": []}', ["at least one class"]),
        ('{"names": ["a", "a"]}', ["a more than once"]),
        ('{"names": ["a"], "colours": []}', ["'colours'", "palette"]),
        ('{"names": ["a"], "palette": [[1, 2]]}', ["palette[0]"]),
        ('{"names": ["a"], "palette": [[1, 2, 300]]}', ["0..255"]),
        ('{"names": ["a", "b"], "palette": [[1, 2, 3]]}', ["1 colours for 2"]),
        ('{"names": ["a", "b"], "palette": [[1, 2, 3], [1, 2, 3]]}', ["same colour"]),
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


def test_colours_where_ids_are_expected_and_the_reverse(segnet: Path) -> None:
    write(segnet / "trainannot/a.png", IMAGE)
    expect_one_line(lambda: camvid(segnet, "train")[0], "trainannot/a.png", "RGB", "expected single-channel ids")
    write(segnet / "other/x.png", IMAGE)
    write(segnet / "other_labels/x_L.png", IDS)
    expect_one_line(lambda: camvid(segnet, "other")[0], "x_L.png", "expected RGB colours")


def test_values_outside_the_classes(custom: Path) -> None:
    write(custom / "masks/train/a.png", IDS)
    expect_one_line(lambda: folder(custom, "train")[0], "masks/train/a.png", "id 3", "0 to 2, 255", "row 0, column 3")
    write_labels(custom, palette=[(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    write(custom / "masks/train/a.png", np.stack([IDS] * 3, axis=-1))
    expect_one_line(lambda: folder(custom, "train")[0], "colour (3, 3, 3)", "3 colours")


def test_damaged_files_are_named(segnet: Path) -> None:
    (segnet / "train/a.png").write_bytes(b"")
    expect_one_line(lambda: camvid(segnet, "train")[0], "train/a.png", "is empty", kind=ImageError)
    (segnet / "trainannot/b.png").write_bytes((segnet / "trainannot/b.png").read_bytes()[:50])
    expect_one_line(lambda: camvid(segnet, "train")[1], "trainannot/b.png", "truncated", kind=ImageError)


# --- randomness -----------------------------------------------------------------------------------------------


def draw(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A transform that shows its random numbers."""
    return torch.rand(4), torch.randint(1000, (4,))


def drawn(dataset: SegmentationDataset, epoch: int, index: int) -> tuple[float, ...]:
    dataset.set_epoch(epoch)
    return tuple(dataset[index][0].tolist())


def test_randomness_is_a_function_of_seed_epoch_and_index(segnet: Path) -> None:
    seen = {}
    for seed in (0, 1):
        dataset = camvid(segnet, "train", draw, seed)
        for epoch, index in ((0, 0), (0, 1), (1, 0), (1, 1), (7, 0)):
            torch.manual_seed(epoch * 31 + index)
            seen[seed, epoch, index] = drawn(dataset, epoch, index)
    assert len(set(seen.values())) == len(seen)
    for seed, epoch, index in reversed(seen):
        torch.rand(3)
        assert drawn(camvid(segnet, "train", draw, seed), epoch, index) == seen[seed, epoch, index]


def test_the_global_generator_is_left_alone(segnet: Path) -> None:
    dataset = camvid(segnet, "train", draw)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    dataset[0]
    assert torch.equal(torch.rand(2), expected)


def test_persistent_workers_follow_the_epoch(segnet: Path) -> None:
    dataset = camvid(segnet, "train", draw)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        through_worker = [tuple(image.tolist()) for image, _ in loader]
        assert through_worker == [drawn(dataset, epoch, index) for index in range(2)]


def test_data_sets_can_be_pickled(segnet: Path) -> None:
    dataset = camvid(segnet, "train", draw, seed=3)
    dataset.set_epoch(4)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1][0], dataset[1][0])


# --- rendered scenes ------------------------------------------------------------------------------------------


def test_scenes_are_reproducible_and_splits_share_none() -> None:
    train, val = open_dataset("scenes:3", "train"), open_dataset("scenes:3", "val")
    assert len(train) == 3
    assert train.labels == CAMVID
    image, mask = train[1]
    assert image.dtype == torch.uint8
    assert mask.dtype == torch.int64
    assert image.shape == (3, *mask.shape)
    assert set(mask.unique().tolist()) <= {*range(11), 255}
    assert torch.equal(open_dataset("scenes:50", "train")[1][0], image)
    assert not torch.equal(val[1][0], image)
    assert not {pair.name for pair in train.pairs} & {pair.name for pair in val.pairs}
    expect_one_line(lambda: open_dataset("scenes:3", "test"), "'test'", "train, val")


def test_pairs_may_come_from_anywhere(tmp_path: Path) -> None:
    pair = Pair(write(tmp_path / "photo.png", IMAGE), write(tmp_path / "drawn.png", IDS), "one")
    dataset = SegmentationDataset([pair], CAMVID, CAMVID_IDS, lambda image, mask: (image.float(), mask))
    assert dataset[0][0].dtype == torch.float32
