"""What the label doctor says of masks that do not hold what they should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from ddsm_zoo.data.masks import CAMVID_OBJECTS
from ddsm_zoo.labels import CITYSCAPES, Color, voc_color
from tests.support.data_sets import IMAGE, write
from tests.support.label_doctor import IDS, NAMES, SIZE, build, check, found, four, picture, text_of

EVERY = {("train", 3), ("val", 1)}


def in_every_mask(kind: str, severity: str = "error") -> dict[tuple[str, str], tuple[str, int]]:
    """What is found when all masks of `four` have this problem."""
    return {(split, kind): (severity, count) for split, count in EVERY}


def smooth(values: int) -> np.ndarray:
    """Ids in broad stripes, as objects have them."""
    return np.repeat(np.arange(64, dtype=np.uint8)[None] * values // 64, 48, 0)


# --- ids ------------------------------------------------------------------------------------------------------


def test_ids_out_of_range(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[:3] = [[7], [9], [7]]
    report = check(build(tmp_path, four() | {"train/b": mask}))
    assert found(report) == {("train", "unknown-id"): ("error", 1)}
    assert text_of(report, "unknown-id") == (
        'train: ids that stand for no class in 1 of 3 masks, expected 0 to 2, 255; "ids" in labels.json says what each '
        "stored value stands for: masks/train/b.png (7, 9 on 25.0% of it, 48 pixels)"
    )


def test_ids_that_start_at_one(tmp_path: Path) -> None:
    report = check(build(tmp_path, four(IDS + 1)))
    assert ("train", "unknown-id") in found(report)
    assert 'these start at 1, subtract 1 or say "zero": "ignore"' in text_of(report, "unknown-id")


def test_ids_of_sixteen_bits(tmp_path: Path) -> None:
    report = check(build(tmp_path, four(IDS.astype(np.uint16) * 1000)))
    assert found(report)["train", "unknown-id"] == ("error", 3)
    assert "1000, 2000" in text_of(report, "unknown-id")


@pytest.mark.parametrize("labels", [{"names": NAMES}, {"ignore_index": 255}, {"ignore": [255]}])
def test_masks_of_0_and_255_that_cannot_be_two_classes(tmp_path: Path, labels: dict[str, object]) -> None:
    """Where 255 is ignored they can be read, and all of the objects are ignored."""
    masks = {name: (mask > 0) * np.uint8(255) for name, mask in four().items()}
    report = check(build(tmp_path, masks, **{"names": ["background", "object"], **labels}))
    problems = found(report)
    assert problems["train", "binary-mask"] == ("error", 3)
    assert problems["val", "binary-mask"] == ("error", 1)
    assert ("train", "unknown-id") not in problems
    assert 'if 255 stands for a class, say so in labels.json, "ids": {' in text_of(report, "binary-mask")


def test_one_mask_of_0_and_255_among_others_may_be_meant(tmp_path: Path) -> None:
    masks = four() | {"train/b": (IDS > 0) * np.uint8(255)}
    assert found(check(build(tmp_path, masks))) == {("train", "binary-mask"): ("warning", 1)}


def test_classes_0_and_1_are_no_such_mask(tmp_path: Path) -> None:
    assert found(check(build(tmp_path, four(IDS % 2), names=["background", "object"]))) == {}


def test_masks_without_any_class(tmp_path: Path) -> None:
    void = np.full(SIZE, 255, np.uint8)
    assert found(check(build(tmp_path / "one", four() | {"train/b": void}))) == {("train", "void-mask"): ("warning", 1)}
    assert found(check(build(tmp_path / "all", four(void)))) == in_every_mask("void-mask")


def test_classes_that_never_occur(tmp_path: Path) -> None:
    report = check(build(tmp_path, four() | {"val/d": np.ones(SIZE, np.uint8)}))
    assert found(report) == {("val", "empty-class"): ("warning", 2)}
    assert text_of(report, "empty-class").startswith("val: no pixel of 2 of 3 classes")
    assert text_of(report, "empty-class").endswith(": road, sky")


# --- Cityscapes' two numberings -------------------------------------------------------------------------------

LABEL_IDS = np.resize(np.array([0, 7, 8, 11, 21, 23, 26, 33], np.uint8), SIZE)
TRAIN_IDS = np.resize(np.arange(19, dtype=np.uint8), SIZE)


def write_cityscapes(root: Path, mask: np.ndarray, kind: str) -> Path:
    for seed, split in enumerate(("train", "val")):
        name = f"{split}/ulm/ulm_000000_000019"
        write(root / f"leftImg8bit/{name}_leftImg8bit.png", picture(seed))
        write(root / f"gtFine/{name}_gtFine_{kind}.png", mask)
    return root


def test_label_ids_for_train_ids(tmp_path: Path) -> None:
    report = check(build(tmp_path / "a", four(LABEL_IDS), names=CITYSCAPES.names))
    assert found(report)["train", "label-ids"] == ("error", 3)
    assert "cityscapes:ROOT reads label ids" in text_of(report, "label-ids")
    report = check(write_cityscapes(tmp_path / "b", LABEL_IDS, "labelTrainIds"), "cityscapes")
    assert found(report)["train", "label-ids"] == ("error", 1)
    report = check(build(tmp_path / "c", four(LABEL_IDS), names=[f"class {index}" for index in range(19)]))
    assert found(report)["train", "unknown-id"] == ("error", 3)


def test_the_void_masks_that_the_test_split_is_published_with(tmp_path: Path) -> None:
    void = np.resize(np.array([1, 2, 3], np.uint8), SIZE)
    root = write_cityscapes(tmp_path, LABEL_IDS, "labelIds")
    write(root / "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png", picture(7))
    write(root / "gtFine/test/bonn/bonn_000000_000019_gtFine_labelIds.png", void)
    problems = {(split, kind) for split, kind in found(check(root, "cityscapes")) if kind != "empty-class"}
    assert problems == {("test", "void-mask")}


def test_train_ids_for_label_ids(tmp_path: Path) -> None:
    void = TRAIN_IDS.copy()
    void[0] = 255
    report = check(write_cityscapes(tmp_path / "void", void, "labelIds"), "cityscapes")
    assert found(report)["train", "train-ids"] == ("error", 1)
    report = check(write_cityscapes(tmp_path / "none", TRAIN_IDS, "labelIds"), "cityscapes")
    assert found(report)["train", "train-ids"] == ("error", 1)
    unsure = np.resize(np.array([0, 7, 8, 11, 17], np.uint8), SIZE)  # a street of buildings alone has these label ids
    report = check(write_cityscapes(tmp_path / "unsure", unsure, "labelIds"), "cityscapes")
    assert found(report)["train", "train-ids"] == ("warning", 1)
    assert "NAME_gtFine_labelTrainIds.png" in text_of(report, "train-ids")


def test_either_numbering_where_it_belongs(tmp_path: Path) -> None:
    for kind, mask in {"labelIds": LABEL_IDS, "labelTrainIds": TRAIN_IDS}.items():
        report = check(write_cityscapes(tmp_path / kind, mask, kind), "cityscapes")
        assert {name for _, name in found(report)} <= {"empty-class"}


# --- lossy files ----------------------------------------------------------------------------------------------


def test_jpeg_masks(tmp_path: Path) -> None:
    """Of neighboring ids, compression makes other ids: no value need be out of range."""
    for name, mask in {"a": smooth(3), "flat": np.ones_like(smooth(3))}.items():
        write(tmp_path / f"images/train/{name}.png", picture(len(name), mask.shape))
        path = tmp_path / f"masks/train/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path, format="jpeg", quality=30)
    (tmp_path / "labels.json").write_text(json.dumps({"names": [f"class {index}" for index in range(200)]}))
    problems = found(report := check(tmp_path))
    assert problems["train", "smeared-mask"] == ("error", 2)  # a flat one too: 1 becomes 0
    assert "masks/train/a.png (" in text_of(report, "smeared-mask")
    assert "store masks as PNG" in text_of(report, "smeared-mask")


def test_colored_jpeg_masks(tmp_path: Path) -> None:
    palette = [(9, 8, 7), (250, 0, 3), (1, 2, 3)]
    colored = np.array(palette, np.uint8)[smooth(3)]
    for name, labels in {"ids": {}, "colors": {"palette": palette}}.items():
        root = build(tmp_path / name, {"train/a": colored}, **labels)
        Image.fromarray(colored).save(root / "masks/train/a.png", format="jpeg")
        problems = found(check(root))
        assert problems["train", "smeared-mask"] == ("error", 1)
        assert (("train", "rgb-mask") in problems) == (name == "ids")
        assert ("train", "unknown-color") not in problems


@pytest.mark.parametrize("step", [1, 7])
def test_masks_with_numbers_of_objects(tmp_path: Path, step: int) -> None:
    """Areas of 20 and more values are no traces of compression. With gaps, they are ids of other classes."""
    objects = {"train/a": 24, "train/b": 9, "val/c": 20, "val/d": 4}
    masks = {
        name: np.kron(step * np.arange(count + 1), np.ones((8, 8))).astype(np.uint8) for name, count in objects.items()
    }
    report = check(build(tmp_path, masks, names=["background", "cell"]))
    assert found(report)["train", "unknown-id"] == ("error", 2)
    assert not any(kind == "smeared-mask" for _, kind in found(report))
    assert ("instances" in text_of(report, "unknown-id")) == (step == 1)


@pytest.mark.parametrize("steps", [1, 127])
def test_masks_resized_with_interpolation(tmp_path: Path, steps: int) -> None:
    """Ids far apart, such as 0 and 127, leave all the values in between where they meet."""
    enlarged = Image.fromarray(smooth(3) * np.uint8(steps)).resize((500, 400), Image.Resampling.BICUBIC)
    names = [f"class {index}" for index in range(3)]
    palette = [(steps * index,) * 3 for index in range(3)]
    masks = four(np.repeat(np.asarray(enlarged)[..., None], 3, 2))
    report = check(build(tmp_path, masks, names=names, palette=palette))
    if steps == 127:
        assert found(report)["train", "smeared-mask"] == ("error", 3)
    else:
        assert ("train", "smeared-mask") not in found(report)


# --- colors --------------------------------------------------------------------------------------------------


def painted(palette: list[Color]) -> np.ndarray:
    return np.array(palette, np.uint8)[np.resize(np.arange(len(palette)), SIZE)]


def test_a_known_palette_is_offered_for_the_names(tmp_path: Path) -> None:
    wanted = [CITYSCAPES.palette[CITYSCAPES.names.index(name)] for name in ("road", "car", "sky")]
    root = build(tmp_path, four(painted([*wanted, (0, 0, 0)])), names=["Road", "car", "sky"])
    report = check(root)
    assert found(report) == in_every_mask("rgb-mask")
    offer = text_of(report, "rgb-mask")
    assert "the colors of Cityscapes" in offer
    assert "void [0, 0, 0]" in offer
    # what is offered can be pasted into labels.json
    pasted = json.loads("{" + offer[offer.index('"palette"') : offer.index("]]") + 2] + "}")
    (root / "labels.json").write_text(json.dumps({"names": ["Road", "car", "sky"], **pasted}))
    problems = check(root).problems
    assert {problem.kind for problem in problems} == {"unknown-color"}  # void has no color there
    assert "(0, 0, 0)" in str(problems[0])


@pytest.mark.parametrize(
    ("palette", "words"),
    [
        (
            [voc_color(0), voc_color(7), voc_color(15)],
            "PASCAL VOC: background [0, 0, 0], car [128, 128, 128], person",
        ),
        ([color for _, color, _ in CAMVID_OBJECTS], "the colors of CamVid: Animal [64, 128, 64]"),
        ([(3, 1, 4), (1, 5, 9), (2, 6, 5)], "no known palette: [1, 5, 9], [2, 6, 5], [3, 1, 4]"),
        ([(index, 0, 255) for index in range(100)], "100 colors of no known palette"),
    ],
)
def test_colors_where_ids_are_expected(tmp_path: Path, palette: list[Color], words: str) -> None:
    report = check(build(tmp_path, four(painted(palette)), names=["this", "that", "other"]))
    assert found(report) == in_every_mask("rgb-mask")
    assert words in text_of(report, "rgb-mask")


def write_with_palette(path: Path, ids: np.ndarray, palette: list[Color]) -> None:
    image = Image.fromarray(ids)
    image.putpalette([channel for color in palette for channel in color])
    path.unlink()
    image.save(path)


def test_palettes_in_another_order_are_read_by_their_colors(tmp_path: Path) -> None:
    """What tools that make RGB masks smaller leave: all numbers are ids, and none of them is right."""
    palette = [(9, 8, 7), (250, 0, 3), (1, 2, 3)]
    root = build(tmp_path, four(), palette=palette)
    write_with_palette(root / "masks/train/b.png", (IDS + 1) % 3, [palette[2], palette[0], palette[1]])
    report = check(root)
    assert found(report) == found(check(root, quick=True)) == {}
    assert report.splits == check(build(tmp_path / "plain", four())).splits


PALETTE = [(9, 8, 7), (250, 0, 3), (1, 2, 3)]


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ([PALETTE[2], PALETTE[0], PALETTE[1]], "masks/train/b.png (0 is [1, 2, 3], in masks/train/a.png [9, 8, 7])"),
        ([PALETTE[0], PALETTE[1], (0, 9, 0)], "masks/train/b.png (2 is [0, 9, 0], in masks/train/a.png [1, 2, 3])"),
    ],
)
def test_palettes_that_contradict_each_other(tmp_path: Path, shown: list[Color], words: str) -> None:
    """Tools number the colors of each file as they come. Without the colors of the classes nobody can tell."""
    root = build(tmp_path, four())
    for name in ("train/a", "train/c", "val/d"):
        write_with_palette(root / f"masks/{name}.png", IDS, PALETTE)
    write_with_palette(root / "masks/train/b.png", IDS, shown)
    report = check(root)
    assert found(report) == {("train", "palette-mask"): ("error", 1)}
    assert text_of(report, "palette-mask").endswith(words)
    assert '"palette" in labels.json' in text_of(report, "palette-mask")
    (root / "labels.json").write_text(json.dumps({"names": NAMES, "ids": {"0": 0, "1": 1, "2": 2}}))
    assert found(check(root)) == {}


def test_palettes_of_two_splits_that_contradict_each_other(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    for name in ("train/a", "train/b", "train/c"):
        write_with_palette(root / f"masks/{name}.png", IDS, PALETTE)
    write_with_palette(root / "masks/val/d.png", IDS, PALETTE[::-1])
    assert found(check(root)) == {("val", "palette-mask"): ("error", 1)}


def test_a_color_that_one_palette_has_twice_is_no_contradiction(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    twice = [PALETTE[0], PALETTE[1], PALETTE[0]]
    write_with_palette(root / "masks/train/a.png", IDS, twice)
    write_with_palette(root / "masks/train/b.png", np.minimum(IDS, 1), twice)
    assert found(check(root)) == {}


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_palettes_of_black_and_white_are_two_classes(tmp_path: Path, order: list[int]) -> None:
    """Some tools store white as index 0."""
    expected = check(build(tmp_path / "plain", four(IDS % 2), names=["a", "b"])).splits
    root = build(tmp_path / "palette", four(IDS % 2), names=["a", "b"])
    for name in four():
        palette = [((0, 0, 0), (255, 255, 255))[order[index]] for index in range(2)]
        write_with_palette(root / f"masks/{name}.png", np.array(order, np.uint8)[IDS % 2], palette)
    report = check(root)
    assert found(report) == {}
    assert report.splits == expected


def test_an_alpha_channel_that_varies_is_said(tmp_path: Path) -> None:
    ids = np.repeat(IDS[..., None], 3, 2)
    flat = np.zeros_like(ids)
    for name, colors, severity in (("said", ids, "warning"), ("alone", flat, "error")):
        root = build(tmp_path / name, four(), names=["road", "car", "sky"])
        for mask in four():
            Image.fromarray(np.dstack([colors, IDS * 100]).astype(np.uint8)).save(root / f"masks/{mask}.png")
        assert found(check(root))["train", "alpha-mask"] == (severity, 3)


def test_masks_with_smooth_borders_of_two_classes(tmp_path: Path) -> None:
    """Few values between 0 and 255 are antialiasing: read as classes, borders would be objects of their own."""
    mask = np.repeat(np.array([0, 0, 0, 80, 180, 255, 255, 255], np.uint8), 2)[None].repeat(12, 0)
    report = check(build(tmp_path, four(mask), names=["a", "b"]))
    assert found(report)["train", "smeared-mask"] == ("error", 3)
    assert "resize them with nearest" in text_of(report, "smeared-mask")


def test_evenly_spread_values_get_the_line_that_reads_them(tmp_path: Path) -> None:
    spread = np.array([0, 128, 255], np.uint8)[IDS]
    text = text_of(check(build(tmp_path / "a", four(spread))), "unknown-id")
    line = text[text.index('"ids"') : text.index("}") + 1]
    assert line == '"ids": {"0": "road", "128": "car", "255": "sky"}'
    report = check(build(tmp_path / "b", four(spread), **json.loads("{" + line + "}")))
    assert found(report) == {}
    assert report.splits == check(build(tmp_path / "c", four())).splits


def test_two_classes_of_0_and_1_in_some_masks_and_255_in_others(tmp_path: Path) -> None:
    masks = four(IDS % 2) | {"train/b": (IDS % 2) * np.uint8(255)}
    report = check(build(tmp_path, masks, names=["a", "b"]))
    assert found(report) == {("train", "binary-mask"): ("error", 1)}
    assert "others hold 0 and 1" in text_of(report, "binary-mask")
    said = check(build(tmp_path, masks, names=["a", "b"], ids={"0": "a", "1": "b", "255": "b"}))
    assert found(said) == {}
    assert said.splits == check(build(tmp_path / "plain", four(IDS % 2), names=["a", "b"])).splits


@pytest.mark.parametrize(
    "shown", [[(9, 8, 7), (1, 1, 1), (2, 2, 2)], [(index,) * 3 for index in range(3)], [(1, 0, 0), (2, 0, 0)]]
)
def test_palettes_that_contradict_nothing(tmp_path: Path, shown: list[Color]) -> None:
    """The classes' own colors, a gray ramp in which the first class has a gray, colors of one's own."""
    root = build(tmp_path, four(), palette=[(9, 8, 7), (0, 0, 0), (1, 2, 3)])
    write_with_palette(root / "masks/train/b.png", IDS, shown)
    assert found(check(root)) == {}


def test_photographs_in_place_of_masks(tmp_path: Path) -> None:
    size = (300, 400)
    for palette in ({}, {"palette": [(9, 9, 9), (1, 2, 3), (4, 5, 6)]}):
        report = check(build(tmp_path, {"train/a": picture(99, size)}, **palette))
        kind = "unknown-color" if palette else "rgb-mask"
        assert found(report)["train", kind] == ("error", 1)
        assert "more than 65536" in text_of(report, kind)


def test_colors_that_stand_for_no_class(tmp_path: Path) -> None:
    palette = [(9, 8, 7), (250, 0, 3), (1, 2, 3)]
    masks = four(painted(palette)) | {"train/b": painted([*palette, (1, 2, 4)])}
    report = check(build(tmp_path, masks, palette=palette))
    assert found(report) == {("train", "unknown-color"): ("error", 1)}
    assert "expected one of the 3 colors" in text_of(report, "unknown-color")
    assert "((1, 2, 4) nearest sky (1, 2, 3) on 25.0% of it, 48 pixels)" in text_of(report, "unknown-color")


def test_ids_where_colors_are_expected(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        write(tmp_path / split / "x.png", picture(seed))
        write(tmp_path / f"{split}_labels/x_L.png", IDS)
    assert found(check(tmp_path, "camvid")) == {
        ("train", "id-mask"): ("error", 1),
        ("val", "id-mask"): ("error", 1),
    }


@pytest.mark.parametrize(("layout", "words"), [("camvid", "SPLIT_labels/NAME_L.png"), ("cityscapes", "labelIds.png")])
def test_colors_in_other_layouts(tmp_path: Path, layout: str, words: str) -> None:
    if layout == "camvid":
        write(tmp_path / "train/x.png", IMAGE)
        write(tmp_path / "trainannot/x.png", IMAGE)
    else:
        write_cityscapes(tmp_path, picture(5), "labelIds")
    assert words in text_of(check(tmp_path, layout), "rgb-mask")


def test_masks_of_several_pages_and_masks_that_exif_turns_are_said(tmp_path: Path) -> None:
    root = build(tmp_path, four())
    page = Image.fromarray(IDS)
    (root / "masks" / "train" / "a.png").unlink()
    page.save(root / "masks" / "train" / "a.tif", save_all=True, append_images=[page])
    exif = Image.Exif()
    exif[0x0112] = 3
    for folder in ("images", "masks"):
        with Image.open(root / folder / "val" / "d.png") as opened:
            opened.load()
        opened.save(root / folder / "val" / "d.png", exif=exif)
    report = check(root)
    assert report.errors == []
    assert text_of(report, "more-pages").startswith("train: more than one page or frame in 1 of 3 masks, of which")
    assert "val: an EXIF rotation in 1 of 1 masks, which are turned upright by it, as images are" in {
        str(problem).partition(":")[0] + ":" + str(problem).split(":")[1] for problem in report.problems
    }


@pytest.mark.parametrize(
    ("kind", "mask", "problem"),
    [
        ("camvid", np.full((*SIZE, 3), (1, 2, 3), np.uint8), "unknown-color"),
        ("camvid", np.full((*SIZE, 3), 7, np.uint8), "unknown-color"),
        ("camvid ids", IDS + np.uint8(40), "unknown-id"),
        ("camvid ids", (IDS > 0) * np.uint8(255), "binary-mask"),
        ("cityscapes", IDS + np.uint8(40), "unknown-id"),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_layout_without_a_label_file_is_not_told_to_write_in_it(
    tmp_path: Path, kind: str, mask: np.ndarray, problem: str, suffix: str
) -> None:
    if kind == "cityscapes":
        write_cityscapes(tmp_path, mask, "labelIds")
    else:
        labels = "annot/a" if kind.endswith("ids") else "_labels/a_L"
        for seed, split in enumerate(("train", "val")):
            write(tmp_path / split / "a.png", picture(seed))
            write(tmp_path / f"{split}{labels}.{suffix}", mask)
    text = text_of(check(tmp_path, kind.partition(" ")[0]), problem)
    assert "this layout reads no labels.json: for other values, arrange the data as folder:ROOT with one" in text
    assert "in labels.json" not in text
    assert '"ids"' not in text


@pytest.mark.parametrize("nodata", ["0", "1.0\0", "255", "9", "nan", ""])
def test_a_value_for_no_data_that_is_a_class_is_said(tmp_path: Path, nodata: str) -> None:
    """A GeoTIFF names it in GDAL's tag, 42113. Ignored values and those that do not occur are as they should be."""
    masks = four()
    root = build(tmp_path, masks)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = nodata
    (root / "masks" / "val" / "d.png").unlink()
    Image.fromarray(masks["val/d"]).save(root / "masks" / "val" / "d.tif", tiffinfo=tags)
    kinds = found(check(root))
    assert kinds == ({("val", "nodata"): ("warning", 1)} if nodata.strip("\0") in ("0", "1.0") else {})
