"""Situations from the field: what training, scoring and check-data make of data as people have them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddsm_zoo.data.check.report import Report, check_data, require_sound
from ddsm_zoo.data.datasets import DatasetError, open_dataset
from ddsm_zoo.evaluation.evaluate import Request, score_model, score_predictions
from tests.support import field_cases as made
from tests.support.cityscapes_root import HEIGHT, WIDTH, write_root
from tests.support.data_sets import expect_one_line
from tests.support.errors import raises

BINARY = {0: 0, 1: 255}
PALETTE = {"palette": made.PALETTE}


@dataclass(frozen=True, kw_only=True)
class Readable:
    """A way to store the scenes that must be read right, and what check-data finds to say (kind and severity)."""

    save: made.Save = made.store
    classes: int = 3
    labels: dict[str, Any] = field(default_factory=dict)
    said: tuple[tuple[str, str], ...] = ()
    without: int | None = None  # class id that is ignored
    change: Callable[[Path], object] = lambda _root: None


def one_folder_deeper(root: Path) -> None:
    for kind in ("images", "masks"):
        for name in ("train1.png", "train2.png"):
            (root / kind / "train/site2").mkdir(exist_ok=True)
            shutil.move(root / kind / "train" / name, root / kind / "train/site2" / name)


def add_droppings(root: Path) -> None:
    for folder in ("images/.ipynb_checkpoints", "images/train/.ipynb_checkpoints", "images/__MACOSX"):
        (root / folder).mkdir()
        shutil.copy(root / "images/train/train0.png", root / folder / "train0.png")
    shutil.copy(root / "images/train/train0.png", root / "images/val/._val0.png")


def encoded(encoding: str) -> Callable[[Path], object]:
    text = json.dumps({"names": made.NAMES})
    return lambda root: (root / "labels.json").write_bytes(text.encode(encoding))


def bordered(ids: np.ndarray, path: Path) -> None:
    picture = np.array(made.PALETTE, np.uint8)[ids]
    picture[ids == 2] = (224, 224, 192)
    made.store(picture, path)


def quantized(ids: np.ndarray, path: Path) -> None:
    Image.fromarray(np.array(made.PALETTE, np.uint8)[ids]).quantize(3).save(path)


def bits(ids: np.ndarray, path: Path) -> None:
    Image.fromarray(ids > 0).save(path)


def as_float(ids: np.ndarray, path: Path) -> None:
    Image.fromarray(ids.astype(np.float32)).save(path.with_suffix(".tif"))


def as_gif(ids: np.ndarray, path: Path) -> None:
    Image.fromarray(ids).save(path.with_suffix(".gif"))


NOTED = (("binary-mask", "note"),)
NAMED = (("mask-name", "note"),)
EMPTY = (("empty-class", "warning"),)
READABLE = {
    "ids": Readable(),
    "D1 0 and 255": Readable(save=made.relabeled(BINARY), classes=2, said=NOTED),
    "D1 0 and 255 in RGB": Readable(save=made.equal_channels(lambda ids: ids * 255), classes=2, said=NOTED),
    "D1 0 and 255 in RGBA": Readable(save=made.equal_channels(lambda ids: ids * 255, 4), classes=2, said=NOTED),
    "D1 0 and 255 in 16 bits": Readable(save=made.relabeled(BINARY, np.uint16), classes=2, said=NOTED),
    "0 and 255, 9 is ignored": Readable(save=made.relabeled(BINARY), classes=2, labels={"ignore_index": 9}, said=NOTED),
    "0 and 255, said": Readable(save=made.relabeled(BINARY), classes=2, labels={"ids": {"0": "bg", "255": "square"}}),
    "one bit": Readable(save=bits, classes=2),
    "D3 colors in palettes of any order": Readable(save=made.shuffled, labels=PALETTE),
    "D3 colors, quantized": Readable(save=quantized, labels=PALETTE),
    "colors": Readable(save=made.colored, labels=PALETTE),
    "D5 0 is unlabeled": Readable(labels={"names": made.NAMES[1:], "zero": "ignore"}, without=0),
    "D5 0 is ignored": Readable(labels={"names": made.NAMES[1:], "ignore": [0, 255]}, without=0),
    "D5 ids are mapped": Readable(
        labels={"names": made.NAMES[1:], "ids": {"0": "ignore", "1": "square", "2": 1}}, without=0
    ),
    "any values": Readable(
        save=made.relabeled({0: 7, 1: 300, 2: 9}, np.uint16), labels={"ids": {"7": 0, "300": 1, "9": 2}}
    ),
    "D6 NAME_mask": Readable(save=made.renamed("_mask"), said=NAMED),
    "D6 NAME_L": Readable(save=made.renamed("_L"), said=NAMED),
    "D6 NAME_seg": Readable(save=made.renamed("_seg"), said=NAMED),
    "D6 NAME_anything, said": Readable(save=made.renamed("_anno2"), labels={"mask_suffix": "_anno2"}),
    "D6 three equal channels": Readable(save=made.equal_channels()),
    "D6 three equal channels, and a palette": Readable(save=made.equal_channels(), labels=PALETTE),
    "D6 three equal channels and alpha": Readable(save=made.equal_channels(channels=4)),
    "D7 subfolders": Readable(change=one_folder_deeper),
    "D8 a border color": Readable(
        save=bordered, labels={**PALETTE, "ignore_colors": [[224, 224, 192]]}, without=2, said=EMPTY
    ),
    "D9 byte order mark": Readable(change=encoded("utf-8-sig")),
    "D9 UTF-16": Readable(change=encoded("utf-16")),
    "D10 droppings": Readable(change=add_droppings),
    "floating point": Readable(save=as_float),
    "GIF": Readable(save=as_gif),
}


@pytest.mark.parametrize("case", READABLE.values(), ids=READABLE)
def test_data_that_must_be_read_right(tmp_path: Path, case: Readable, caplog: pytest.LogCaptureFixture) -> None:
    root = made.build(tmp_path / "data", case.save, case.classes, **case.labels)
    case.change(root)
    spec = f"folder:{root}"
    report = check_data(spec)
    assert {(problem.kind, problem.severity) for problem in report.problems} == set(case.said)
    read = {Path(pair.name).name: mask.numpy() for split in made.COUNTS for pair, mask in items(spec, split)}
    ignored = open_dataset(spec, "train").labels.ignore_index
    classes = [index for index in range(case.classes) if index != case.without]
    # without class 0, the ids of the others begin at 0; the border of class 2 leaves them as they are
    new = {old: ignored if old == case.without else number for number, old in enumerate(classes)}
    new |= {case.without: ignored} if case.without is not None else {}
    for _, name, ids in made.truth(case.classes):
        np.testing.assert_array_equal(read[name], np.vectorize(new.get)(ids), err_msg=name)
    # perfect predictions, stored as the masks are
    shutil.copytree(root / "masks/val", tmp_path / "perfect")
    assert score_predictions(tmp_path / "perfect", Request(data=spec)).figures()["miou"] == 1
    if case.without is None:  # imperfect ones as plain class ids
        made.write_predictions(tmp_path / "mine", classes=case.classes)
        with caplog.at_level(logging.WARNING):
            scores = score_predictions(tmp_path / "mine", Request(data=spec), class_ids=True).figures()
        assert scores["miou"] == pytest.approx(made.mean_iou(case.classes), abs=1e-12)
        assert ("read as 0 and 1" in caplog.text) == (case.said == NOTED)


def items(spec: str, split: str) -> list[tuple[Any, Any]]:
    dataset = open_dataset(spec, split)
    return [(pair, dataset[index][1]) for index, pair in enumerate(dataset.pairs)]


def mixed(ids: np.ndarray, path: Path) -> None:
    made.store(ids * np.uint8(255 if path.stem == "train1" else 1), path)


def smooth(ids: np.ndarray, path: Path) -> None:
    size = made.SIZE[1] * 3, made.SIZE[0] * 3
    small = Image.fromarray((ids > 0) * np.uint8(255)).resize(size, Image.Resampling.BILINEAR)
    small.resize(made.SIZE[::-1], Image.Resampling.BILINEAR).save(path)


def wrong_color(ids: np.ndarray, path: Path) -> None:
    picture = np.array(made.PALETTE, np.uint8)[ids]
    picture[0, :5] = (250, 3, 0)
    made.store(picture, path)


def array(ids: np.ndarray, path: Path) -> None:
    np.save(path.with_suffix(".npy"), ids)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A way to store the scenes that cannot be read, and what the one line must say."""

    save: made.Save
    says: tuple[str, ...]
    classes: int = 3
    labels: dict[str, Any] = field(default_factory=dict)


REFUSED = {
    "D2 palettes contradict": Refused(save=made.shuffled, says=("palettes that contradict each other", '"palette"')),
    "D5 classes start at 1": Refused(
        save=made.store, labels={"names": made.NAMES[1:]}, says=("stand for no class", '"zero": "ignore"')
    ),
    "D8 a color without class": Refused(save=bordered, labels=PALETTE, says=("(224, 224, 192)", '"ignore_colors"')),
    "a color a little off": Refused(
        save=wrong_color, labels=PALETTE, says=("(250, 3, 0) nearest square (255, 0, 0)", "5 pixels")
    ),
    "colors without palette": Refused(save=made.colored, says=("RGB colors", '"palette"')),
    "JPEG": Refused(save=made.jpeg, says=("smeared values", "PNG")),
    "JPEG of 0 and 255": Refused(
        save=lambda ids, path: made.jpeg(ids * np.uint8(2), path), classes=2, says=("smeared values", "PNG")
    ),
    "0 and 255, 255 is ignored": Refused(
        save=made.relabeled(BINARY), classes=2, labels={"ignore_index": 255}, says=("nothing but 0 and 255", '"ids"')
    ),
    "0 and 1 here, 0 and 255 there": Refused(
        save=mixed, classes=2, says=("nothing but 0 and 255 in 1 of 3", "others hold 0 and 1", '"ids"')
    ),
    "0, 128 and 255": Refused(
        save=made.relabeled({0: 0, 1: 128, 2: 255}), says=('"ids": {"0": "bg", "128": "square", "255": "disc"}',)
    ),
    "254 among 0 and 255": Refused(
        save=lambda ids, path: made.store(np.where(ids[::-1] > ids, 254, ids * 255).astype(np.uint8), path),
        classes=2,
        says=("(254 on", "smooth edges", '"ids"'),
    ),
    "smooth borders": Refused(save=smooth, classes=2, says=("smeared values", "nearest")),
    "arrays": Refused(save=array, says=("no mask for 3 of 3 images",)),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_data_that_must_be_refused_by_every_reader(tmp_path: Path, case: Refused) -> None:
    spec = f"folder:{made.build(tmp_path / 'data', case.save, case.classes, **case.labels)}"
    text = str(check_data(spec).errors[0])
    assert all(part in text for part in case.says), text
    expect_one_line(lambda: require_sound(spec, ("train", "val")), *case.says)
    made.write_predictions(tmp_path / "mine", classes=case.classes)
    for score in (
        lambda: score_predictions(tmp_path / "mine", Request(data=spec, split="train")),
        lambda: score_model(lambda images: images, Request(data=spec, split="train")),
    ):
        expect_one_line(score)


def test_jpeg_labels_are_refused_by_the_data_set_too(tmp_path: Path) -> None:
    root = made.build(tmp_path, made.jpeg)
    expect_one_line(lambda: open_dataset(f"folder:{root}", "train")[0], "compressed with loss", "expected a PNG")


def test_warnings_are_said_when_scoring(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = made.build(tmp_path / "data")
    made.store(np.zeros(made.SIZE, np.uint8), root / "masks/val/more.png")
    made.write_predictions(tmp_path / "mine")
    scores = score_predictions(tmp_path / "mine", Request(data=f"folder:{root}")).figures()
    assert scores["miou"] == pytest.approx(made.mean_iou(), abs=1e-12)
    assert "no image for 1 of 3 masks, which are left out: masks/val/more.png" in caplog.text


@pytest.mark.parametrize(
    "save",
    [
        made.colored,
        made.shuffled,
        lambda ids, path: made.colored(ids, path.with_name(f"{path.stem}_pred.png")),
        made.store,
    ],
)
def test_predictions_are_read_by_the_rules_of_masks(tmp_path: Path, save: made.Save) -> None:
    root = made.build(tmp_path / "data", **PALETTE)
    made.write_predictions(tmp_path / "mine", save)
    scores = score_predictions(tmp_path / "mine", Request(data=f"folder:{root}")).figures()
    assert scores["miou"] == pytest.approx(made.mean_iou(), abs=1e-12)


def test_predictions_whose_palettes_contradict_each_other_are_refused(tmp_path: Path) -> None:
    root = made.build(tmp_path / "data")
    made.write_predictions(tmp_path / "mine", made.shuffled)
    request = Request(data=f"folder:{root}")
    expect_one_line(lambda: score_predictions(tmp_path / "mine", request), "palettes of predictions contradict", "val1")


def test_predictions_for_images_in_subfolders(tmp_path: Path) -> None:
    root = made.build(tmp_path / "data")
    for kind in ("images", "masks"):
        (root / kind / "val/site2").mkdir()
        shutil.move(root / kind / "val/val1.png", root / kind / "val/site2/val1.png")
    made.write_predictions(tmp_path / "flat")
    shutil.copytree(tmp_path / "flat", tmp_path / "nested")
    (tmp_path / "nested/site2").mkdir()
    shutil.move(tmp_path / "nested/val1.png", tmp_path / "nested/site2/val1_ids.png")
    for folder in ("flat", "nested"):
        scored = score_predictions(tmp_path / folder, Request(data=f"folder:{root}"))
        assert scored.figures()["miou"] == pytest.approx(made.mean_iou(), abs=1e-12)
        scored.write_pictures(tmp_path / "report", worst=2)
    assert sum(1 for _ in (tmp_path / "report").glob("worst_*site2_val1.png")) == 1


@pytest.mark.parametrize("labels", [made.store, made.relabeled(BINARY)], ids=["0 and 1", "0 and 255"])
@pytest.mark.parametrize(
    "predictions",
    [made.store, made.relabeled(BINARY), made.equal_channels(lambda ids: ids * 255)],
    ids=["0 and 1", "0 and 255", "0 and 255 in RGB"],
)
def test_two_classes_score_the_same_however_either_side_is_stored(
    tmp_path: Path, labels: made.Save, predictions: made.Save
) -> None:
    root = made.build(tmp_path / "data", labels, classes=2)
    made.write_predictions(tmp_path / "mine", predictions, classes=2)
    scores = score_predictions(tmp_path / "mine", Request(data=f"folder:{root}")).figures()
    assert scores["miou"] == pytest.approx(made.mean_iou(2), abs=1e-12)


def test_predictions_of_white_alone_are_read_as_the_masks_are(tmp_path: Path) -> None:
    root = made.build(tmp_path / "data", made.relabeled(BINARY), classes=2)
    made.write_predictions(tmp_path / "mine", lambda ids, path: made.store(ids * 0 + np.uint8(255), path), classes=2)
    scores = score_predictions(tmp_path / "mine", Request(data=f"folder:{root}")).figures()
    share = np.mean([ids for split, _, ids in made.truth(2) if split == "val"])
    assert scores["pixel_accuracy"] == pytest.approx(share, abs=1e-12)
    with raises(DatasetError, kind="predictions"):
        score_predictions(tmp_path / "mine", Request(data=f"folder:{root}"), class_ids=True)


def test_255_is_ignored_where_a_mask_of_two_classes_also_holds_1(tmp_path: Path) -> None:
    def with_border(ids: np.ndarray, path: Path) -> None:
        ids = ids.copy()
        ids[:2] = 255
        made.store(ids, path)

    root = made.build(tmp_path, with_border, classes=2)
    assert check_data(f"folder:{root}").problems == ()
    mask = open_dataset(f"folder:{root}", "val")[0][1]
    assert mask[:2].unique().tolist() == [255]
    assert mask[2:].unique().tolist() == [0, 1]


@pytest.mark.parametrize("save", [made.store, made.relabeled(BINARY), bits], ids=["0 and 1", "0 and 255", "bits"])
def test_a_single_class_is_read_as_0_and_1(tmp_path: Path, save: made.Save) -> None:
    root = made.build(tmp_path, save, classes=2, names=["square"])
    dataset = open_dataset(f"folder:{root}", "val")
    expected = [ids for split, _, ids in made.truth(2) if split == "val"]
    for index, ids in enumerate(expected):
        np.testing.assert_array_equal(dataset[index][1].numpy(), ids)
    report = check_data(f"folder:{root}")
    assert not report.errors
    assert report.splits["val"].pixels[1] == sum(int(ids.sum()) for ids in expected)


def test_left_out_files_are_counted(tmp_path: Path) -> None:
    root = made.build(tmp_path)
    (root / "images/train/new.heic").write_bytes(b"photo")
    np.save(root / "masks/train/array.npy", np.zeros(3))
    shutil.copy(root / "images/train/train0.png", root / "images/loose.png")
    texts = {
        problem.kind: str(problem) for problem in check_data(f"folder:{root}").warnings if problem.split == "train"
    }
    assert set(texts) == {"left-out", "outside-image"}
    assert "a format that is not read in 2 of 8 files" in texts["left-out"]
    assert "new.heic" in texts["left-out"]
    assert "array.npy" in texts["left-out"]
    assert "images/loose.png" in texts["outside-image"]


def test_many_classes_have_ids_of_16_bits(tmp_path: Path) -> None:
    names = [f"c{index}" for index in range(300)]
    far = {0: 0, 1: 255, 2: 299}
    root = made.build(tmp_path / "data", made.relabeled(far, np.uint16), names=names)
    report = check_data(f"folder:{root}")
    assert not report.errors
    assert report.reading == "ids 0 to 299 in the order of the names; 65535 = ignored"
    assert open_dataset(f"folder:{root}", "val")[0][1].unique().tolist() == [0, 255, 299]
    made.write_predictions(tmp_path / "mine", made.relabeled(far, np.uint16))
    scores = score_predictions(tmp_path / "mine", Request(data=f"folder:{root}")).figures()
    assert scores["miou"] == pytest.approx(made.mean_iou(), abs=1e-12)


def test_train_ids_in_files_of_label_ids_are_found_when_scoring(tmp_path: Path) -> None:
    for file in write_root(tmp_path / "city", ["bonn_000000_000019"]):
        Image.fromarray(np.resize(np.arange(19, dtype=np.uint8), (HEIGHT, WIDTH))).save(file)
    request = Request(data=f"cityscapes:{tmp_path / 'city'}")
    expect_one_line(lambda: score_model(lambda images: images, request), "labelTrainIds")


def test_the_report_says_how_stored_values_are_read(tmp_path: Path) -> None:
    labels = {"names": ["square", "disc"], "ids": {"1": "square", "2": "disc", "9": "disc"}, "ignore": [0, 255]}
    report: Report = check_data(f"folder:{made.build(tmp_path, **labels)}")
    assert report.reading == "1 = square, 2, 9 = disc; 0, 255 = ignored"
    assert report.to_plain()["masks"] == report.reading


def test_a_mask_that_fits_by_several_names_is_no_choice_of_ours(tmp_path: Path) -> None:
    root = made.build(tmp_path, made.renamed("_mask"))
    for split, name, ids in made.truth():
        made.store(ids, root / f"masks/{split}/{name}_gt.png")
    with raises(DatasetError, kind="same-name", path=root):
        open_dataset(f"folder:{root}", "train")
    (root / "labels.json").write_text(json.dumps({"names": made.NAMES, "mask_suffix": "_gt"}))
    report = check_data(f"folder:{root}")
    assert {problem.kind for problem in report.problems} == {"unused-mask"}
