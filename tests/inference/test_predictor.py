from __future__ import annotations

import dataclasses
import errno
import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import ddsm_zoo
from ddsm_zoo import Predictor
from ddsm_zoo.data.images import ImageError
from ddsm_zoo.data.scenes.render import render_scene
from ddsm_zoo.inference.predictor import PROCESS
from ddsm_zoo.inference.preparation import model_labels
from ddsm_zoo.inference.tiling import MIN_SIDE
from ddsm_zoo.labels import CAMVID, CITYSCAPES
from ddsm_zoo.models import Segmenter
from ddsm_zoo.utils.files import OutputError
from ddsm_zoo.utils.visualize import contrast
from ddsm_zoo.zoo.registry import UnknownModelError
from tests.support.errors import raises

pytestmark = pytest.mark.numeric  # masks are compared: rounding decides ties


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=len(CAMVID))
    # Random logits are nearly constant; a spread-out bias-free classifier makes several classes win.
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    return model


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return Image.fromarray(render_scene(3, (90, 120))[0])


def test_path_image_and_array_agree(model: Segmenter, scene: Image.Image, tmp_path: Path) -> None:
    scene.save(tmp_path / "scene.png")
    predictor = Predictor(model)
    results = [predictor(tmp_path / "scene.png"), predictor(str(tmp_path / "scene.png")), predictor(scene)]
    results.append(predictor(np.asarray(scene)))
    for result in results:
        assert result.mask.dtype == np.uint8
        assert result.mask.shape == (90, 120)
        assert np.array_equal(result.mask, results[0].mask)
        assert result.image.size == (120, 90)


def test_mask_is_the_argmax_of_the_model_on_the_normalized_image(model: Segmenter, scene: Image.Image) -> None:
    """By hand: mean and standard deviation of the tiny backbone are 0.5."""
    x = torch.from_numpy(np.array(scene)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = model.eval()(x).argmax(1)[0]
    mask = torch.from_numpy(Predictor(model)(scene).mask)
    assert (mask == expected).float().mean() > 0.999  # rounding may decide a tie


@pytest.mark.parametrize("tile", [None, MIN_SIDE])
def test_an_image_below_the_least_size_is_enlarged_for_the_model_alone(scene: Image.Image, tile: int | None) -> None:
    torch.manual_seed(0)
    model = ddsm_zoo.create_model("uper_ddsm_tiny", num_classes=len(CAMVID))
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    prepared = dataclasses.replace(model.provenance.preprocess, min_size=(360, 480))
    model.provenance = dataclasses.replace(model.provenance, preprocess=prepared)
    x = torch.from_numpy(np.array(scene)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        logits = model.eval()(F.interpolate(x, (360, 480), mode="bilinear"))
        expected = F.interpolate(logits, (90, 120), mode="bilinear").argmax(1)[0].numpy()
        unchanged = model(x).argmax(1)[0].numpy()
    result = Predictor(model, tile=tile)(scene)
    assert result.image.size == (120, 90)
    assert (result.mask == expected).mean() > 0.99  # pixels of the enlarged image are rounded to 8 bits
    assert (unchanged == expected).mean() < 0.95


def test_more_classes_than_a_byte_holds_have_ids_of_16_bits(scene: Image.Image, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ddsm_zoo.create_model("uper_tiny", num_classes=300)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    x = torch.from_numpy(np.array(scene)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = model.eval()(x).argmax(1)[0].numpy()
    assert expected.max() > 255
    result = Predictor(model)(scene)
    assert result.mask.dtype == np.uint16
    assert (result.mask == expected).mean() > 0.99  # folded norms round
    paths = result.save(tmp_path, "scene")
    np.testing.assert_array_equal(np.asarray(Image.open(paths["ids"])), result.mask)


def test_the_model_is_left_in_evaluation_mode(model: Segmenter, scene: Image.Image) -> None:
    predictor = Predictor(model)
    model.train()
    first, second = predictor(scene), predictor(scene)
    assert np.array_equal(first.mask, second.mask)
    assert not model.training


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (33, 7)])
def test_any_size(model: Segmenter, size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.new("RGB", (size[1], size[0]), (90, 120, 40))
    result = Predictor(model)(image)
    assert result.mask.shape == size
    assert math.isclose(sum(result.shares().values()), 1.0)
    assert len(result.save(tmp_path, "x")) == 3


def test_orientation_of_a_photo_is_honored(model: Segmenter, scene: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.save(tmp_path / "turned.png", exif=exif)
    assert Predictor(model)(tmp_path / "turned.png").mask.shape == (120, 90)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_other_kinds_of_image(model: Segmenter, scene: Image.Image, mode: str) -> None:
    assert Predictor(model)(scene.convert(mode)).mask.shape == (90, 120)


def test_saved_pictures_hold_the_mask_and_its_colors(model: Segmenter, scene: Image.Image, tmp_path: Path) -> None:
    result = Predictor(model)(scene)
    paths = result.save(tmp_path / "new" / "folder", "scene")
    assert {kind: path.name for kind, path in paths.items()} == {
        "ids": "scene_ids.png",
        "color": "scene_color.png",
        "overlay": "scene_overlay.png",
    }
    ids = np.asarray(Image.open(paths["ids"]))
    assert np.array_equal(ids, result.mask)
    palette = np.array(result.labels.palette, np.uint8)
    assert np.array_equal(np.asarray(Image.open(paths["color"])), palette[ids])


def test_overlays_have_colors_of_contrast_unless_asked_for_the_labels_own(model: Segmenter, scene: Image.Image) -> None:
    mask, labels = Predictor(model)(scene).mask, model_labels(model)
    for palette, colors in (("contrast", contrast(labels).palette), ("own", labels.palette)):
        result = Predictor(model, palette=palette)(scene)
        assert np.array_equal(np.asarray(result.overlay(alpha=1, legend=False)), np.array(colors, np.uint8)[mask])
        assert np.array_equal(np.asarray(result.color()), np.array(labels.palette, np.uint8)[mask])
    with raises(ValueError, kind="argument", name="palette", got="mine"):
        Predictor(model, palette="mine")


@pytest.mark.parametrize("tile", [None, MIN_SIDE])
def test_confidence_is_the_mean_probability_of_the_predicted_class(
    model: Segmenter, monkeypatch: pytest.MonkeyPatch, tile: int | None
) -> None:
    predictor = Predictor(model, tile=tile)
    image = np.random.default_rng(0).integers(0, 256, (40, 2 * MIN_SIDE), dtype=np.uint8)
    monkeypatch.setattr(predictor, "predict", lambda x: torch.cat([x[:, :1] * scale for scale in range(11)], 1))
    value = ((image / 255 - 0.5) / 0.5).astype(np.float64)
    powers = np.exp(value[..., None] * np.arange(11))
    expected = (powers / powers.sum(-1, keepdims=True)).max(-1).mean()
    assert predictor(image).confidence == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["array", "image"])
def test_black_borders_can_be_left_out(model: Segmenter, scene: Image.Image, kind: str) -> None:
    bright = np.maximum(np.asarray(scene), 40)
    framed = np.pad(bright, ((3, 11), (0, 9), (0, 0)), constant_values=5)
    image = framed if kind == "array" else Image.fromarray(framed)
    alone, trimmed = Predictor(model)(bright), Predictor(model, trim=True)(image)
    assert np.array_equal(trimmed.mask[3:-11, :-9], alone.mask)
    assert (trimmed.mask[:3, :-9] == alone.mask[0]).all()
    assert (trimmed.mask[3:-11, -9:] == alone.mask[:, -1:]).all()
    assert np.array_equal(np.asarray(trimmed.image), framed)
    assert trimmed.confidence == alone.confidence
    assert np.array_equal(Predictor(model, trim=True)(bright).mask, alone.mask)


def test_all_pictures_are_saved_or_none(model: Segmenter, scene: Image.Image, tmp_path: Path) -> None:
    result = Predictor(model)(scene)
    (tmp_path / "x_overlay.png").mkdir()
    with raises(OutputError, path="x_overlay.png"):
        result.save(tmp_path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x_overlay.png"]

    before = {path: path.read_bytes() for path in result.save(tmp_path / "old", "x").values()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # as on a full disk, for the largest of the three
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, before.values())) // 2, limits[1]))
    try:
        with raises(OutputError, path="x_overlay.png", errno=errno.EFBIG):
            Predictor(model)(scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).save(tmp_path / "old", "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_a_picture_in_tiles_is_labeled_as_the_whole(model: Segmenter) -> None:
    picture = Image.fromarray(render_scene(3, (200, 900))[0])
    seen: list[tuple[int, int]] = []
    tiled = Predictor(model, tile=MIN_SIDE)
    result = tiled(picture, lambda done, total: seen.append((done, total)))
    assert (result.mask == Predictor(model)(picture).mask).mean() >= 0.999
    assert seen[-1][0] == seen[-1][1] > 1
    assert result.mask.shape == (200, 900)
    assert np.array_equal(tiled(np.asarray(picture)).mask, result.mask)


@pytest.mark.parametrize("tile", ["auto", MIN_SIDE])
def test_what_fits_is_labeled_at_once(model: Segmenter, scene: Image.Image, tile: Any) -> None:
    seen: list[int] = []
    result = Predictor(model, tile=tile)(scene, lambda done, total: seen.append(done))
    assert np.array_equal(result.mask, Predictor(model)(scene).mask)
    assert not seen


def test_less_memory_makes_smaller_tiles(model: Segmenter) -> None:
    """A function that makes 44 bytes a pixel stands for the network."""
    heights: list[int] = []

    def predict(image: torch.Tensor) -> torch.Tensor:
        heights.append(image.shape[-2])
        return torch.zeros(1, 11, *image.shape[-2:])

    largest = []
    for memory in (PROCESS + 2**28, PROCESS + 2**27):
        predictor = Predictor(model, tile="auto", memory=memory)
        predictor.predict = predict
        heights.clear()
        assert predictor(Image.new("RGB", (1000, 3000))).mask.shape == (3000, 1000)
        largest.append(max(heights[1:]))  # the first is the example by which memory is measured
    assert 3000 > largest[0] > largest[1] >= MIN_SIDE - 32
    with raises(ValueError, kind="memory-limit", name="memory", got=2**20):
        Predictor(model, tile="auto", memory=2**20)(Image.new("RGB", (1000, 3000)))


def test_memory_says_how_many_pixels_a_file_may_have(model: Segmenter, scene: Image.Image, tmp_path: Path) -> None:
    scene.save(tmp_path / "scene.png")
    pixels = scene.width * scene.height
    assert Predictor(model, tile="auto", memory=16 * pixels).read(tmp_path / "scene.png").size == scene.size
    with raises(ImageError, kind="image-too-large", path="scene.png"):
        Predictor(model, tile="auto", memory=16 * pixels - 32).read(tmp_path / "scene.png")
    assert Predictor(model, memory=1).read(tmp_path / "scene.png").size == scene.size


def test_a_picture_that_the_machine_cannot_hold(model: Segmenter, scene: Image.Image) -> None:
    """No machine has the addresses for what stands for the network."""
    predictor = Predictor(model)
    predictor.predict = lambda image: torch.empty(2**58)
    with raises(ValueError, kind="out-of-memory") as error:
        predictor(scene)
    assert "120 x 90" in str(error.value)
    predictor.predict = lambda image: image @ image  # whose sides do not fit: a bug stays one
    with pytest.raises(RuntimeError, match="Expected size"):
        predictor(scene)


def test_bfloat16_gives_nearly_the_same_classes(model: Segmenter, scene: Image.Image) -> None:
    expected = Predictor(model)(scene).mask
    mask = Predictor(model, precision="bf16")(scene).mask
    assert 0.9 < (mask == expected).mean() < 1  # it was in fact another precision


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "fp16"}, "fp32, bf16, auto"),
        ({"tile": 100}, f"'auto' or a number of pixels from {MIN_SIDE} on"),
        ({"tile": "all"}, f"'auto' or a number of pixels from {MIN_SIDE} on"),
    ],
)
def test_choices_that_cannot_be(model: Segmenter, options: dict[str, Any], expected: str) -> None:
    ((name, got),) = options.items()
    with raises(ValueError, kind="argument", name=name, got=got, expected=expected):
        Predictor(model, **options)


def test_shares_count_pixels(model: Segmenter, scene: Image.Image) -> None:
    result = Predictor(model)(scene)
    shares = result.shares()
    assert tuple(shares) == result.labels.names
    for index, share in enumerate(shares.values()):
        assert math.isclose(share, np.mean(result.mask == index))


@pytest.mark.parametrize(
    ("content", "kind"), [(b"", "image-format"), (b"no image at all", "image-format"), (None, "damaged-image")]
)
def test_bad_files(model: Segmenter, scene: Image.Image, tmp_path: Path, content: bytes | None, kind: str) -> None:
    path = tmp_path / "bad.png"
    scene.save(path)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with raises(ImageError, kind=kind, path="bad.png"):
        Predictor(model)(path)


def test_missing_file(model: Segmenter, tmp_path: Path) -> None:
    with raises(FileNotFoundError, kind="missing-file", path="nowhere.png"):
        Predictor(model)(tmp_path / "nowhere.png")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 0, 3), np.uint8)]
)
def test_bad_arrays(model: Segmenter, array: np.ndarray) -> None:
    with raises(ValueError, kind="array", name="image", got=array.shape):
        Predictor(model)(array)


def test_a_wrapped_model_is_unwrapped_and_others_are_refused(model: Segmenter, scene: Image.Image) -> None:
    average = torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(model))
    assert np.array_equal(Predictor(average)(scene).mask, Predictor(model)(scene).mask)
    with raises(TypeError, name="model", got="Conv2d"):
        Predictor(torch.nn.Conv2d(3, 3, 1))  # type: ignore[arg-type]


def test_unknown_name() -> None:
    with raises(UnknownModelError, kind="unknown-model", name="uper_ddsm_tinny"):
        Predictor("uper_ddsm_tinny")


def test_model_of_other_channels() -> None:
    with raises(ValueError, kind="channels", got=4, expected=3):
        Predictor(ddsm_zoo.create_model("uper_tiny", in_chans=4))


def test_unknown_device(model: Segmenter) -> None:
    with raises(ValueError, kind="device", got="gpu"):
        Predictor(model, device="gpu")


def test_model_that_gives_nan(scene: Image.Image) -> None:
    broken = ddsm_zoo.create_model("uper_tiny")
    torch.nn.init.constant_(broken.classifier.bias, math.nan)
    with raises(ValueError, kind="nan-scores"):
        Predictor(broken)(scene)


def test_labels_follow_the_classes() -> None:
    assert model_labels(ddsm_zoo.create_model("uper_ddsm_r101_cityscapes")) == CITYSCAPES
    changed = ddsm_zoo.create_model("uper_ddsm_lite0_camvid")
    assert model_labels(changed) == CAMVID
    changed.reset_classifier(3)
    assert model_labels(changed).names == ("class 0", "class 1", "class 2")
